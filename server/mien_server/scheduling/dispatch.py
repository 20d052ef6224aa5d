"""The scheduler's rules, without threads and without a clock: what to run next, and what becomes of it.

Every method takes the time as an argument and returns what is to be told to callers (settlements), so
that the rules can be tested to the microsecond. `scheduler.py` puts a lock and threads around it.

Between slots, a free executor takes the batch that is most urgent: by priority (against the model's own
default level), then later stages before new calls, then slots within their fair share of the device
before those beyond it, then the nearer deadline, then the older call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from mien_server.scheduling.admission import Admission
from mien_server.scheduling.batch_run import BatchRun
from mien_server.scheduling.batching import Batch, CloseReason, form_batch
from mien_server.scheduling.deadlines import DeadlineHeap
from mien_server.scheduling.device_state import DeviceState
from mien_server.scheduling.errors import Draining, Expired, Unavailable
from mien_server.scheduling.estimate import ComputeEstimate, with_headroom
from mien_server.scheduling.interface import Completion, Device
from mien_server.scheduling.policy import TimeoutAction
from mien_server.scheduling.request import Part, Request
from mien_server.scheduling.slot import Slot

Settlement = tuple[Request, Completion | Exception]
"""A request and what its caller is to be told."""

_DEATHS_UNTIL_BROKEN = (
    6  # a lone request that kills takes two executors with it: three such in a row
)
_FAIR_LEAD = 0.02  # seconds of device time by which a slot may run ahead of the others' share


@dataclass(slots=True, eq=False)
class Assignment:
    """One batch, handed to one executor.

    Attributes:
        run: the batch under way.
        cores: the cores granted; 0 on a GPU.
        started: when it was handed out.
    """

    slot: Slot
    placed: int
    device: DeviceState
    batch: Batch
    run: BatchRun
    cores: int
    started: float


class Dispatcher:
    """The queues of all slots, the devices, and the rules between them. Not safe for threads."""

    def __init__(self, devices: Sequence[Device], *, max_requests: int, max_bytes: int) -> None:
        self.devices = {device.name: DeviceState(device) for device in devices}
        self.slots: list[Slot] = []
        self.admission = Admission(
            self.devices, self.slots, max_requests=max_requests, max_bytes=max_bytes
        )
        self._deadlines = DeadlineHeap()

    def submit(self, slot: Slot, request: Request, now: float) -> None:
        """Admits and queues a request.

        Raises:
            QueueFull, Expired, Unavailable, Draining, ValueError: as `Slot.submit` says.
        """
        state = slot.state
        try:
            self.admission.check(slot, request, now)
        except Exception:
            state.statistics.rejected += 1
            raise
        if not len(state.queue):
            # Time in which it asked for nothing earns no credit.
            for name, share in state.share.items():
                state.share[name] = max(share, self.devices[name].fair_floor)
        state.queue.append(request)
        self.admission.hold(request)
        if slot.policy.preserve_ordering:
            state.in_order.append(request)
        for at in (request.deadline, request.expires):
            if at is not None:
                self._deadlines.push(at, request, waiting=self.admission.held)

    def take(
        self, device_name: str, now: float
    ) -> tuple[Assignment | float | None, list[Settlement]]:
        """The most urgent batch for a free executor; or when to ask again; or None: nothing waits."""
        settled = self.expire(now)
        device = self.devices[device_name]
        if not device.idle or (device.device.cores and not device.free_cores):
            return None, settled
        slots = self._slots_of(device)
        if slots:
            least = min(slot.state.share[device_name] for slot in slots)
            device.fair_floor = max(device.fair_floor, least)
        slots.sort(key=lambda slot: self._urgency(slot, device))
        ask_again: float | None = None
        for slot in slots:
            if not self._free_runs(slot, device):
                continue
            decision = self._form(slot, now, settled)
            if isinstance(decision, Batch):
                return self._assign(slot, device, decision, now), settled
            if decision is not None:
                ask_again = decision if ask_again is None else min(ask_again, decision)
        return ask_again, settled

    def finish(self, assignment: Assignment, now: float) -> list[Settlement]:
        """Takes back an executor whose batch is done, and settles the batch's requests."""
        self._give_back(assignment, now)
        slot, run, statistics = assignment.slot, assignment.run, assignment.slot.state.statistics
        slot.state.deaths = 0 if not run.died else slot.state.deaths
        timing = run.timing(0.0)
        if run.isolated:
            statistics.isolated += 1
        statistics.record_batch(assignment.batch.rows, assignment.batch.reason, timing)
        if run.clean:
            units = assignment.cores or 1
            slot.state.estimate.learn(
                assignment.batch.rows,
                assignment.batch.shape,
                now - assignment.started,
                now,
                units=units,
            )
        settled: list[Settlement] = []
        offset = 0
        for part in assignment.batch.parts:
            outcomes = run.outcomes[offset : offset + part.size]
            offset += part.size
            settled += self._finish_part(assignment, part, outcomes, now)
        return settled

    def died(self, assignment: Assignment, error: BaseException) -> list[Settlement]:
        """Notes that an executor thread died with a batch; after too many in a row the slot is broken."""
        slot = assignment.slot
        slot.state.statistics.executor_deaths += 1
        slot.state.deaths += 1
        if slot.state.deaths < _DEATHS_UNTIL_BROKEN or slot.state.broken:
            return []
        slot.state.broken = (
            f"{slot.state.deaths} executors in a row died in it, the last of {error!r}"
        )
        return self._refuse_waiting(
            slot, lambda: Unavailable(f"{slot} is unhealthy: {slot.state.broken}")
        )

    def expire(self, now: float) -> list[Settlement]:
        """Takes out the requests whose deadline or queue timeout has passed."""
        settled: list[Settlement] = []
        for request in self._deadlines.due(now):
            slot = request.slot
            if request not in slot.state.queue:
                continue
            if request.deadline is not None and request.deadline <= now:
                settled += self._expire(request, f"its deadline passed in the queue of {slot}")
            elif request.expires is not None and request.expires <= now:
                policy = slot.policy.queue_policy(request.level)
                if policy.timeout_action is TimeoutAction.DELAY:
                    slot.state.queue.delay(request)
                else:
                    settled += self._expire(request, f"its timeout passed in the queue of {slot}")
        return settled

    def next_expiry(self) -> float | None:
        """When `expire` has something to do next."""
        return self._deadlines.next()

    def withdraw(self, request: Request) -> tuple[bool, list[Settlement]]:
        """Takes a request out of its queue for its caller; False if it does not wait there."""
        slot = request.slot
        if not slot.state.queue.remove(request):
            return False, []
        slot.state.statistics.cancelled += 1
        return True, self._settle(request, None)

    def close(self) -> list[Settlement]:
        """Refuses everything from now on, and settles what still waits."""
        self.admission.close()
        settled: list[Settlement] = []
        for slot in self.slots:
            settled += self._refuse_waiting(slot, lambda: Draining("the server is shutting down"))
        return settled

    def delivered(self, slot: Slot) -> list[Settlement]:
        """Notes that all answers of an ordered slot have left; returns those that came up meanwhile."""
        slot.state.delivering = False
        return self._answers_in_turn(slot)

    def batches_waiting(self, device: DeviceState) -> int:
        """About how many more batches the device could run now, if it had executors for them."""
        return sum(
            min(len(self._free_runs(slot, device)), _batches_in(slot))
            for slot in self._slots_of(device)
        )

    def _slots_of(self, device: DeviceState) -> list[Slot]:
        """The slots with work waiting that have an instance on the device."""
        name = device.device.name
        return [slot for slot in self.slots if len(slot.state.queue) and name in slot.state.share]

    def _free_runs(self, slot: Slot, device: DeviceState) -> list[int]:
        """The slot's instances on the device, once for each more batch that they may run now."""
        return [
            index
            for index, placed in enumerate(slot.instances)
            if placed.device == device.device.name
            for _ in range(placed.count - slot.state.running[index])
        ]

    def _urgency(self, slot: Slot, device: DeviceState) -> tuple[int, int, float, float, float]:
        head = slot.state.queue.head()
        assert head is not None  # noqa: S101 - only slots with work are compared
        return (
            head.level - slot.policy.default_priority_level,
            -head.stage,
            (slot.state.share[device.device.name] - device.fair_floor) // _FAIR_LEAD,
            float("inf") if head.deadline is None else head.deadline,
            head.arrived,
        )

    def _form(self, slot: Slot, now: float, settled: list[Settlement]) -> Batch | float | None:
        """Forms a batch, after taking out what could not be done in time any more."""
        state = slot.state

        def expected(rows: int, shape: object) -> float:
            return with_headroom(state.estimate.typical(rows, shape, now))

        while True:
            draining = state.closing or self.admission.draining
            decision = form_batch(state.queue, slot.policy, now, expected, draining=draining)
            if not isinstance(decision, Batch):
                return decision
            done_by = {
                size: now + state.estimate.fastest(size, decision.shape, now)
                for size in {part.size for part in decision.parts}
            }
            late = [
                part.request
                for part in decision.parts
                if part.request.deadline is not None and part.request.deadline < done_by[part.size]
            ]
            if not late:
                return _in_time(decision, now, state.estimate)
            for request in late:
                settled += self._expire(
                    request, f"its deadline would pass while {slot} computes it"
                )

    def _assign(self, slot: Slot, device: DeviceState, batch: Batch, now: float) -> Assignment:
        for part in batch.parts:
            slot.state.queue.take(part)
            if not part.request.running():
                part.request.set_running_or_notify_cancel()
                slot.state.statistics.queue.add(now - part.request.queued)
        index = self._free_runs(slot, device)[0]
        slot.state.running[index] += 1
        cores = 0
        if device.device.cores:
            # All free cores for a lone batch; an even share where other executors would find work too.
            sharers = min(device.idle, 1 + self.batches_waiting(device))
            cores = max(1, device.free_cores // sharers)
            device.free_cores -= cores
        device.idle -= 1
        rows = [row for part in batch.parts for row in part.request.rows[part.start : part.stop]]
        run = BatchRun(str(slot), slot.instances[index].instance, rows)
        return Assignment(slot, index, device, batch, run, cores, now)

    def _give_back(self, assignment: Assignment, now: float) -> None:
        state = assignment.slot.state
        state.running[assignment.placed] -= 1
        assignment.device.idle += 1
        assignment.device.free_cores += assignment.cores
        parts = assignment.batch.parts
        new = sum(part.size for part in parts if part.request.stage == 0)
        seconds = (now - assignment.started) * (assignment.cores or 1)
        state.share[assignment.device.device.name] += seconds * new / assignment.batch.rows

    def _finish_part(
        self, assignment: Assignment, part: Part, outcomes: list[object], now: float
    ) -> list[Settlement]:
        request, statistics = part.request, assignment.slot.state.statistics
        if request.settled:
            return []
        error = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        if error is not None:
            assignment.slot.state.queue.remove(request)
            statistics.failed += 1
            return self._settle(request, error)
        statistics.rows += part.size
        timing = assignment.run.timing(assignment.started - request.queued)
        completion = request.add_results(part.start, outcomes, timing)
        if completion is None:
            return []
        statistics.record_success(completion.timing, latency=now - request.queued, now=now)
        return self._settle(request, completion)

    def _expire(self, request: Request, why: str) -> list[Settlement]:
        request.slot.state.queue.remove(request)
        request.slot.state.statistics.expired += 1
        return self._settle(request, Expired(why))

    def _refuse_waiting(self, slot: Slot, error: Callable[[], Exception]) -> list[Settlement]:
        settled: list[Settlement] = []
        for request in list(slot.state.queue):
            slot.state.queue.remove(request)
            slot.state.statistics.failed += 1
            settled += self._settle(request, error())
        return settled

    def _settle(self, request: Request, outcome: Completion | Exception | None) -> list[Settlement]:
        """Closes the books on a request. Returns what may be told now, in the order to keep."""
        request.settled = True
        self.admission.release(request)
        request.release()
        if not request.slot.policy.preserve_ordering:
            return [] if outcome is None else [(request, outcome)]
        settled: list[Settlement] = []
        if isinstance(outcome, Completion):
            request.answer = outcome
        elif outcome is not None:
            # A refusal says nothing that an earlier answer could contradict: it need not wait.
            settled.append((request, outcome))
        return settled + self._answers_in_turn(request.slot)

    def _answers_in_turn(self, slot: Slot) -> list[Settlement]:
        """The answers of an ordered slot that no earlier request holds back any more."""
        state = slot.state
        settled: list[Settlement] = []
        while not state.delivering and state.in_order and state.in_order[0].settled:
            first = state.in_order.popleft()
            if first.answer is not None:
                settled.append((first, first.answer))
                first.answer = None
        state.delivering = state.delivering or bool(settled)
        return settled


def _batches_in(slot: Slot) -> int:
    """About how many batches the requests make that wait in a slot."""
    if not slot.policy.combine:
        return len(slot.state.queue)
    return ceil(slot.state.queue.rows / slot.policy.usual_batch_size)


def _in_time(batch: Batch, now: float, estimate: ComputeEstimate) -> Batch:
    """As much of a batch as is done before the nearest deadline in it, from the front; one part at least."""
    parts = batch.parts
    while len(parts) > 1:
        deadlines = [part.request.deadline for part in parts if part.request.deadline is not None]
        if not deadlines:
            break
        seconds = estimate.typical(sum(part.size for part in parts), batch.shape, now)
        if now + seconds <= min(deadlines):
            break
        parts = parts[:-1]
    return batch if parts == batch.parts else replace(batch, parts=parts, reason=CloseReason.URGENT)

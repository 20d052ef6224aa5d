"""The scheduler's rules, without threads and without a clock: what to run next, and what becomes of it.

Every method takes the time as an argument and returns what is to be told to callers (settlements), so
that the rules can be tested to the microsecond. `scheduler.py` puts threads around it, behind the lock of
`scheduler.py`.

Between slots, a free executor takes the batch that is most urgent: by priority (against the model's own
default level), then calls that have passed more slots, then slots within their fair share of the device
before those beyond it, then the nearer deadline, then the older call.
"""

from collections.abc import Callable, Sequence
from math import ceil

from mien_server.scheduling.admission import Admission
from mien_server.scheduling.batch_run import BatchRun
from mien_server.scheduling.batching import (
    Batch,
    BatchingPolicy,
    TimeoutAction,
    at_most,
    form_batch,
    in_time,
)
from mien_server.scheduling.errors import Draining, Expired, RowFailed, Unavailable
from mien_server.scheduling.interface import Completion, Device, PlacedInstance, Work
from mien_server.scheduling.queue import Part, Request
from mien_server.scheduling.state import (
    Assignment,
    DeadlineHeap,
    DeviceState,
    Settlement,
    SlotState,
)
from mien_server.scheduling.statistics import with_headroom

# A lone request that kills takes two executors with it, so this is three such in a row.
_DEATHS_UNTIL_BROKEN = 6
_FAIR_LEAD = 0.02  # seconds of device time by which a slot may run ahead of the others' share


class Dispatcher:
    """The slots, the devices, and the rules between them. Not safe for threads."""

    def __init__(self, devices: Sequence[Device], *, max_requests: int, max_bytes: int) -> None:
        self.devices = {device.name: DeviceState(device) for device in devices}
        self.slots: list[SlotState] = []
        self.admission = Admission(self.slots, max_requests=max_requests, max_bytes=max_bytes)
        self._deadlines = DeadlineHeap()

    def open_slot(
        self,
        name: str,
        version: int,
        policy: BatchingPolicy,
        instances: Sequence[PlacedInstance],
    ) -> SlotState:
        """Adds a slot; it takes requests at once.

        Raises:
            ValueError: no instance, or one on a device that there is not.
        """
        if not instances:
            raise ValueError(f"{name} version {version} has no instance")
        for placed in instances:
            if placed.device not in self.devices:
                raise ValueError(
                    f"there is no device {placed.device!r}, only {sorted(self.devices)}"
                )
        capacity = sum(self.devices[name].capacity for name in {at.device for at in instances})
        slot = SlotState(name, version, policy, instances, capacity)
        self.slots.append(slot)
        return slot

    def close_slot(self, slot: SlotState) -> bool:
        """Refuses new calls to a slot, and removes it once nothing waits or runs in it.

        Returns:
            Whether it is removed. If not, ask again whenever a request has been settled or a batch is
            back: rows of a request that is settled already may still run.
        """
        slot.closing = True
        if slot.held or any(slot.running):
            return False
        if not slot.closed:
            slot.closed = True
            self.slots.remove(slot)
        return True

    def drain(self) -> bool:
        """Refuses new calls everywhere; says whether all accepted requests are settled."""
        self.admission.draining = True
        return self.admission.budget.count == 0

    def close(self) -> list[Settlement]:
        """Refuses everything from now on, and settles what still waits."""
        self.admission.close()
        settled: list[Settlement] = []
        for slot in self.slots:
            settled += self._refuse_waiting(slot, lambda: Draining("the server is shutting down"))
        return settled

    def submit(
        self, slot: SlotState, work: Work, now: float, withdraw: Callable[[Request], bool]
    ) -> Request:
        """Admits and queues work. `withdraw` is what `Request.cancel` calls.

        Raises:
            QueueFull, Expired, Unavailable, Draining, ValueError: as `Slot.submit` says.
        """
        level = slot.policy.level(work.priority)
        try:
            self.admission.check(slot, work, level, now)
        except Exception:
            slot.statistics.rejected += 1
            raise
        timeout = slot.policy.queue_policy(level).timeout(work.timeout)
        expires = None if timeout is None else now + timeout
        request = Request(work, level=level, queued=now, expires=expires, withdraw=withdraw)
        if not len(slot.queue):
            # Time in which it asked for nothing earns no credit.
            for name, share in slot.share.items():
                slot.share[name] = max(share, self.devices[name].fair_floor)
        slot.queue.append(request)
        self.admission.hold(slot, request)
        if slot.order is not None:
            slot.order.append(request)
        for at in (request.deadline, expires):
            if at is not None:
                self._deadlines.push(at, slot, request, waiting=self.admission.budget.count)
        return request

    def withdraw(self, slot: SlotState, request: Request) -> tuple[bool, list[Settlement]]:
        """Takes a request out of its queue for its caller; False if it does not wait there."""
        if not slot.queue.remove(request):
            return False, []
        slot.statistics.cancelled += 1
        return True, self._settle(slot, request, None)

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
            least = min(slot.share[device_name] for slot in slots)
            device.fair_floor = max(device.fair_floor, least)
        if len(slots) > 1:
            slots.sort(key=lambda slot: self._urgency(slot, device))
        ask_again: float | None = None
        for slot in slots:
            if not slot.free_runs(device_name):
                continue
            decision = self._form(slot, device, now, settled)
            if isinstance(decision, Batch):
                return self._assign(slot, device, decision, now), settled
            if decision is not None:
                ask_again = decision if ask_again is None else min(ask_again, decision)
        return ask_again, settled

    def finish(self, assignment: Assignment, now: float) -> list[Settlement]:
        """Takes back an executor whose batch is done, and settles the batch's requests."""
        self._give_back(assignment, now)
        if assignment.device.device.cores > 1:
            assignment.device.company.end(_calls_in(assignment.batch), now)
        slot, run, batch = assignment.slot, assignment.run, assignment.batch
        if not run.died:
            slot.deaths = 0
        if run.isolated:
            slot.statistics.isolated += 1
        slot.statistics.record_batch(batch.rows, batch.reason, run.timing(0.0))
        if run.clean:
            seconds, units = now - assignment.started, assignment.cores or 1
            slot.estimate.learn(batch.rows, batch.shape, seconds, now, units=units)
            if assignment.device.device.cores > 1:
                slot.costs.learn(units, batch.rows, batch.shape, seconds, now)
        settled: list[Settlement] = []
        offset = 0
        for part in batch.parts:
            outcomes = run.outcomes[offset : offset + part.size]
            offset += part.size
            settled += self._finish_part(assignment, part, outcomes, now)
        return settled

    def died(self, assignment: Assignment, error: BaseException) -> list[Settlement]:
        """Notes that an executor thread died with a batch; after too many in a row the slot is broken."""
        slot = assignment.slot
        assignment.run.died = True
        slot.statistics.executor_deaths += 1
        slot.deaths += 1
        if slot.deaths < _DEATHS_UNTIL_BROKEN or slot.broken:
            return []
        slot.broken = f"{slot.deaths} executors in a row died in it, the last of {error!r}"
        return self._refuse_waiting(
            slot, lambda: Unavailable(f"{slot} is unhealthy: {slot.broken}")
        )

    def abandon(self, assignment: Assignment, now: float, incident: str) -> list[Settlement]:
        """Fails what callers still wait for of a batch whose executor died as it brought it back."""
        slot = assignment.slot
        slot.statistics.executor_deaths += 1
        if not assignment.returned:
            self._give_back(assignment, now)
        settled: list[Settlement] = []
        for request in {part.request for part in assignment.batch.parts}:
            failed = RowFailed(f"{slot} lost the answer to this input", incident=incident)
            if not request.settled:
                slot.queue.remove(request)
                slot.statistics.failed += 1
                settled += self._settle(slot, request, failed)
            elif slot.order is None and not request.done():
                settled.append(Settlement(slot, request, failed))
        return settled

    def expire(self, now: float) -> list[Settlement]:
        """Takes out the requests whose deadline or queue timeout has passed."""
        settled: list[Settlement] = []
        for slot, request in self._deadlines.due(now):
            if request not in slot.queue:
                continue
            if request.deadline is not None and request.deadline <= now:
                settled += self._expire(
                    slot, request, f"its deadline passed in the queue of {slot}"
                )
                continue
            policy = slot.policy.queue_policy(request.level)
            if policy.timeout_action is TimeoutAction.DELAY:
                slot.queue.delay(request)
            else:
                settled += self._expire(slot, request, f"its timeout passed in the queue of {slot}")
        return settled

    def next_expiry(self) -> float | None:
        """When `expire` has something to do next."""
        return self._deadlines.next()

    def delivered(self, slot: SlotState) -> list[Settlement]:
        """Notes that all answers of an ordered slot have left; returns those that came up meanwhile."""
        assert slot.order is not None  # noqa: S101 - only ordered slots are asked
        return [Settlement(slot, request, answer) for request, answer in slot.order.delivered()]

    def batches_waiting(self, device: DeviceState) -> int:
        """About how many more batches the device could run now, if it had executors for them."""
        return sum(
            min(len(slot.free_runs(device.device.name)), slot.batches_waiting(device))
            for slot in self._slots_of(device)
        )

    def _slots_of(self, device: DeviceState) -> list[SlotState]:
        """The slots with work waiting that have an instance on the device."""
        name = device.device.name
        return [slot for slot in self.slots if len(slot.queue) and name in slot.share]

    def _next_calls(self, device: DeviceState) -> list[float]:
        """When the calls came in that are next in the queues of a device."""
        heads = [slot.queue.head() for slot in self._slots_of(device)]
        return [head.arrived for head in heads if head is not None]

    def _urgency(
        self, slot: SlotState, device: DeviceState
    ) -> tuple[int, int, float, float, float]:
        head = slot.queue.head()
        assert head is not None  # noqa: S101 - only slots with work are compared
        return (
            head.level - slot.policy.default_priority_level,
            -head.passed,
            (slot.share[device.device.name] - device.fair_floor) // _FAIR_LEAD,
            float("inf") if head.deadline is None else head.deadline,
            head.arrived,
        )

    def _form(
        self, slot: SlotState, device: DeviceState, now: float, settled: list[Settlement]
    ) -> Batch | float | None:
        """Forms a batch, after taking out what could not be done in time any more."""

        def typical(rows: int, shape: object) -> float:
            return slot.estimate.typical(rows, shape, now)

        def expected(rows: int, shape: object) -> float:
            return with_headroom(typical(rows, shape))

        while True:
            draining = slot.closing or self.admission.draining
            decision = form_batch(slot.queue, slot.policy, now, expected, draining=draining)
            if not isinstance(decision, Batch):
                return decision
            done_by = {
                size: now + slot.estimate.fastest(size, decision.shape, now)
                for size in {part.size for part in decision.parts}
            }
            late = [
                part.request
                for part in decision.parts
                if part.request.deadline is not None and part.request.deadline < done_by[part.size]
            ]
            if not late:
                # Not among more batches than the slot may run at once.
                sharers = min(device.sharers, slot.runs(device.device.name))
                if sharers > 1:
                    most = ceil(slot.queue.rows / sharers)
                    decision = at_most(decision, most, split=slot.policy.split_rows)
                return in_time(decision, now, typical)
            for request in late:
                settled += self._expire(
                    slot, request, f"its deadline would pass while {slot} computes it"
                )

    def _assign(self, slot: SlotState, device: DeviceState, batch: Batch, now: float) -> Assignment:
        for part in batch.parts:
            slot.queue.take(part)
            if part.start == 0:
                part.request.set_running_or_notify_cancel()
                slot.statistics.queue.add(now - part.request.queued)
        index = slot.free_runs(device.device.name)[0]
        slot.running[index] += 1
        cores = min(1, device.device.cores)
        if device.device.cores > 1:
            # Of all free cores if it is the only one; of an even share where others would find work too.
            sharers = min(device.idle, 1 + self.batches_waiting(device))
            most = max(1, min(device.free_cores, device.device.cores) // sharers)
            company = device.company
            company.begin(_calls_in(batch), self._next_calls(device))
            often = 0.0 if self._has_for_itself(slot, device) else company.often
            cores = slot.costs.choose(most, batch.rows, batch.shape, often, now)
        device.free_cores -= cores
        device.idle -= 1
        rows = [row for part in batch.parts for row in part.request.rows[part.start : part.stop]]
        run = BatchRun(str(slot), slot.instances[index].instance, rows, slot.facts)
        return Assignment(slot, index, device, batch, run, cores, now)

    def _has_for_itself(self, slot: SlotState, device: DeviceState) -> bool:
        """Whether cores that a batch of the slot leaves would stand idle.

        They would where the slot may run no other batch beside it, and no other slot has anything to do.
        """
        name = device.device.name
        return slot.runs(name) == 1 and not any(
            other is not slot and name in other.share and (len(other.queue) or any(other.running))
            for other in self.slots
        )

    def _give_back(self, assignment: Assignment, now: float) -> None:
        slot, device = assignment.slot, assignment.device
        assignment.returned = True
        slot.running[assignment.placed] -= 1
        device.idle += 1
        device.free_cores += assignment.cores
        parts = assignment.batch.parts
        new = sum(part.size for part in parts if part.request.passed == 0)
        seconds = (now - assignment.started) * (assignment.cores or 1)
        slot.share[device.device.name] += seconds * new / assignment.batch.rows

    def _finish_part(
        self, assignment: Assignment, part: Part, outcomes: list[object], now: float
    ) -> list[Settlement]:
        slot, request = assignment.slot, part.request
        if request.settled:
            return []
        error = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        if error is not None:
            slot.queue.remove(request)
            slot.statistics.failed += 1
            return self._settle(slot, request, error)
        slot.statistics.rows += part.size
        timing = assignment.run.timing(assignment.started - request.queued)
        completion = request.add_results(part.start, outcomes, timing)
        if completion is None:
            return []
        slot.statistics.record_success(completion.timing, latency=now - request.queued, now=now)
        return self._settle(slot, request, completion)

    def _expire(self, slot: SlotState, request: Request, why: str) -> list[Settlement]:
        slot.queue.remove(request)
        slot.statistics.expired += 1
        return self._settle(slot, request, Expired(why))

    def _refuse_waiting(self, slot: SlotState, error: Callable[[], Exception]) -> list[Settlement]:
        settled: list[Settlement] = []
        for request in list(slot.queue):
            slot.queue.remove(request)
            slot.statistics.failed += 1
            settled += self._settle(slot, request, error())
        return settled

    def _settle(
        self, slot: SlotState, request: Request, outcome: Completion | Exception | None
    ) -> list[Settlement]:
        """Closes the books on a request. Returns what may be told now, in the order to keep."""
        request.settled = True
        self.admission.release(slot, request)
        request.release()
        if slot.order is None:
            return [] if outcome is None else [Settlement(slot, request, outcome)]
        settled: list[Settlement] = []
        answer: Completion | None = None
        if isinstance(outcome, Completion):
            answer = outcome
        elif outcome is not None:
            # A refusal says nothing that an earlier answer could contradict: it need not wait.
            settled.append(Settlement(slot, request, outcome))
        in_turn = slot.order.settled(request, answer)
        return settled + [Settlement(slot, *answered) for answered in in_turn]


def _calls_in(batch: Batch) -> frozenset[float]:
    """When the calls came in whose rows a batch has."""
    return frozenset(part.request.arrived for part in batch.parts)

"""What the importer is told of a network's input: by flags, where no publisher is known or wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from mien_server.commands.main import main
from mien_server.models.crops import Crop
from mien_server.models.interface import Normalisation
from mien_server.repository.golden import applies, read_golden
from mien_server.repository.manifest import read_manifest, version_fingerprint
from mien_server.weights.errors import WeightsError
from mien_server.weights.importer import ImportRefused
from mien_server.weights.recognise.recognised import GivenInput
from tests.unit.weights.conftest import Import, config_of
from tests.unit.weights.onnx_files import one_layer, scrfd
from tests.unit.weights.test_import_refusals import onnx_with_external_weights

IMAGENET = ["--mean", "123.675,116.28,103.53", "--scale", "1/58.395,1/57.12,1/57.375"]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Somebody's own embedder."""
    return one_layer(tmp_path / "ours.onnx", ["n", 3, 112, 112], 64)


def test_flags_become_the_new_models_configuration(repository: Path, graph: Path) -> None:
    flags = [*IMAGENET, "--channel-order", "BGR", "--model-repository", str(repository)]
    assert main(["models", "import", "ours", str(graph), *flags]) == 0
    assert config_of(repository / "ours").normalisation == Normalisation(
        "BGR", (123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)
    )
    text = (repository / "ours" / "config.pbtxt").read_text()
    assert 'string_value: "1/58.395, 1/57.12, 1/57.375"' in text


def test_what_is_not_said_is_as_the_publisher_has_it(
    repository: Path, graph: Path, bring: Import
) -> None:
    bring("ours", graph, given=GivenInput(scale=(1 / 128,)))
    assert config_of(repository / "ours").normalisation == Normalisation(
        "RGB", (127.5, 127.5, 127.5), 1 / 128
    )


def test_a_configuration_that_says_otherwise_is_not_overruled(
    repository: Path, graph: Path, bring: Import
) -> None:
    bring("ours", graph)
    with pytest.raises(ImportRefused, match=r"in another way than you say, .*scale \"1/128\""):
        bring("ours", graph, given=GivenInput(scale=(1 / 128,)))
    (done,), _ = bring("ours", graph, given=GivenInput(channel_order="RGB", mean=(127.5,)))
    assert done.version == 2


@pytest.mark.parametrize("value", ["1,2", "a", "1/0", "nan", ""])
def test_a_number_that_is_none_is_a_wrong_command_line(
    graph: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", "import", "ours", str(graph), "--mean", value])
    assert ended.value.code == 2
    assert "must be one number or three" in capsys.readouterr().err


def test_an_embedder_of_another_size_comes_in_once_it_is_said_what_it_sees(
    repository: Path, tmp_path: Path, bring: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = one_layer(tmp_path / "large.onnx", ["n", 3, 160, 160], 64)
    with pytest.raises(WeightsError, match=r"\[-1, 3, 160, 160\].* say by --window which part"):
        bring("large", graph)
    assert not (repository / "large").exists()
    flags = ["--window=-8,-16,128", "--model-repository", str(repository)]
    assert main(["models", "import", "large", str(graph), *flags]) == 0
    config = config_of(repository / "large")
    assert config.options.crop == Crop(160, window=(-8, -16, 128))
    assert config.inputs[0].dims == (3, 160, 160)
    golden = read_golden(repository / "large" / "1")
    assert golden is not None
    assert golden.pictures.shape[1:] == (160, 160, 3)
    assert applies(golden, config)
    # What it sees is part of what an embedding means.
    manifest = read_manifest(repository / "large" / "1")
    elsewhere = replace(config, options=replace(config.options, crop=Crop(160)))
    assert version_fingerprint(config, manifest) != version_fingerprint(elsewhere, manifest)
    assert not applies(golden, elsewhere)
    # The next one needs no word, for the config.pbtxt has it.
    (done,), _ = bring("large", graph)
    assert done.version == 2
    with pytest.raises(ImportRefused, match="has the window -8, -16, 128, not the one"):
        bring("large", graph, given=GivenInput(window=(0, 0, 112)))
    usual = one_layer(tmp_path / "usual.onnx", ["n", 3, 112, 112], 64)
    with pytest.raises(ImportRefused, match=r"sees 112x112 pixels, but .* dims \[3, 160, 160\]"):
        bring("large", usual)
    for wrong in ("1,2", "0,0,0", "a,b,c", "0,0,nan"):
        with pytest.raises(SystemExit):
            main(["models", "import", "large", str(graph), "--window", wrong])
        assert "must be left, top and side" in capsys.readouterr().err


def test_a_window_is_of_one_embedder(repository: Path, tmp_path: Path, bring: Import) -> None:
    given = GivenInput(window=(0, 0, 112))
    (tmp_path / "pack").mkdir()
    detector = scrfd(tmp_path / "pack" / "det.onnx")
    with pytest.raises(ImportRefused, match="only those see a window"):
        bring("det", detector, given=given)
    with pytest.raises(ImportRefused, match="import its file by itself"):
        bring("pack", detector.parent, given=given)
    assert not (repository / "det").exists()


def test_a_strangers_network_has_no_licence_of_others(
    graph: Path, bring: Import, tmp_path: Path
) -> None:
    (done,), _ = bring("ours", graph)
    assert read_manifest(done.folder).license == "not stated"
    assert "InsightFace" not in (done.folder.parent / "config.pbtxt").read_text()
    published = one_layer(tmp_path / "w600k_mbf.onnx", ["n", 3, 112, 112], 64)
    (done,), _ = bring("mbf", published)
    assert "non-commercial research only" in read_manifest(done.folder).license


def test_weights_in_other_files_are_refused_with_the_cure(tmp_path: Path, bring: Import) -> None:
    onnx_with_external_weights(tmp_path / "ours.onnx")
    with pytest.raises(WeightsError, match=r"external_data=False"):
        bring("ours", tmp_path / "ours.onnx")

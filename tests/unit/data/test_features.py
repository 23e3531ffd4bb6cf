from __future__ import annotations

import multiprocessing
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch

from asrtool.data import features
from asrtool.data.config import AugmentConfig, BatchConfig, DataConfig, NoiseConfig
from asrtool.data.fbank import FbankConfig
from asrtool.errors import UserError


def matrices(count: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"utt-{n}": rng.normal(n, 2, (3 + n, 4)).astype(np.float32) for n in range(count)}


def write(
    folder: Path, content: dict[str, np.ndarray], name: str = "feats.1.ark"
) -> dict[str, str]:
    with features.ArkWriter(folder / name) as writer:
        return {key: writer.write(key, matrix) for key, matrix in content.items()}


# -- archives --------------------------------------------------------------


def test_what_was_written_is_read_in_any_order(tmp_path: Path) -> None:
    references = write(tmp_path, matrices())
    for key, matrix in reversed(matrices().items()):
        found = features.read_features(references[key])
        assert found.dtype == np.float32 and found.flags.writeable
        np.testing.assert_array_equal(found, matrix)


def test_the_name_of_an_archive_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    for name in ("touch ran |", "|touch ran"):
        Path(name).write_bytes(features.encode(matrix))
        np.testing.assert_array_equal(features.read_features(f"{name}:0"), matrix)
        np.testing.assert_array_equal(features.decode(features.encode(matrix), name), matrix)
        with pytest.raises(FileNotFoundError):
            features.read_features(f"x {name}:0")
    assert {path.name for path in tmp_path.iterdir()} == {"touch ran |", "|touch ran"}


def test_kaldi_tools_read_the_archive(tmp_path: Path) -> None:
    references = write(tmp_path, {"ünï": matrices()["utt-1"], **matrices()})
    (tmp_path / "feats.scp").write_text(
        "".join(f"{key} {value}\n" for key, value in references.items())
    )
    by_offset = kaldiio.load_scp(str(tmp_path / "feats.scp"))
    in_order = dict(kaldiio.load_ark(str(tmp_path / "feats.1.ark")))
    assert by_offset.keys() == in_order.keys() == references.keys()
    np.testing.assert_array_equal(by_offset["utt-3"], matrices()["utt-3"])


def test_references_name_the_final_place(tmp_path: Path) -> None:
    with features.ArkWriter(tmp_path / "a.ark", Path("dump/train/a.ark")) as writer:
        assert writer.write("key", np.zeros((2, 2))) == "dump/train/a.ark:4"


def test_compressed_and_double_matrices_are_read_as_float32(tmp_path: Path) -> None:
    matrix = matrices()["utt-4"].astype(np.float64)
    kaldiio.save_ark(str(tmp_path / "double.ark"), {"a": matrix})
    kaldiio.save_ark(str(tmp_path / "small.ark"), {"a": matrix}, compression_method=2)
    double, small = (
        features.read_features(f"{tmp_path}/{name}.ark:2") for name in ("double", "small")
    )
    assert double.dtype == small.dtype == np.float32
    np.testing.assert_array_equal(double, matrix.astype(np.float32))
    np.testing.assert_allclose(small, matrix, atol=0.1)  # eight bits for a range of some 10


def test_more_archives_than_handles_can_be_read(tmp_path: Path) -> None:
    references = [
        write(tmp_path, matrices(1, n), f"{n}.ark")["utt-0"] for n in range(features.HANDLES + 3)
    ]
    for n in (0, *range(len(references)), 0):
        np.testing.assert_array_equal(
            features.read_features(references[n]), matrices(1, n)["utt-0"]
        )


def read_many(references: list[str]) -> list[float]:
    return [
        float(features.read_features(reference).sum(dtype=np.float64))
        for _ in range(200)
        for reference in references
    ]


def test_forked_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    references = list(write(tmp_path, matrices()).values())
    expected = read_many(references)  # the parent's handles are open when it forks
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_many, [references] * 4, chunksize=1) == [expected] * 4


def test_what_is_no_matrix_is_refused(tmp_path: Path) -> None:
    reference = write(tmp_path, matrices(1))["utt-0"]
    archive = tmp_path / "feats.1.ark"
    archive.write_bytes(archive.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"feats.1.ark:6: not a Kaldi matrix"):
        features.read_features(reference)
    with pytest.raises(UserError, match="feats.1.ark:5: not a Kaldi matrix"):
        features.read_features(f"{archive}:5")
    with pytest.raises(UserError, match="is not a reference <archive>:<offset>"):
        features.read_features(str(archive))
    with pytest.raises(FileNotFoundError):
        features.read_features(f"{tmp_path}/gone.ark:5")


# -- normalisation ---------------------------------------------------------


def statistics(parts: list[np.ndarray]) -> features.CmvnStats:
    stats = features.CmvnStats(parts[0].shape[1])
    for part in parts:
        stats.add(part)
    return stats


def test_normalised_training_data_has_mean_0_and_variance_1() -> None:
    parts = list(matrices(50).values())
    cmvn = statistics(parts).cmvn()
    normalised = np.concatenate([cmvn.apply(part) for part in parts])
    assert cmvn.frames == len(normalised) and normalised.dtype == np.float32
    np.testing.assert_allclose(normalised.mean(0), 0, atol=1e-5)  # float32
    np.testing.assert_allclose(normalised.std(0), 1, atol=1e-5)


def test_statistics_of_parts_add_up() -> None:
    parts = list(matrices(6).values())
    whole, half = statistics(parts), statistics(parts[:3])
    half += statistics(parts[3:])
    assert half.frames == whole.frames
    np.testing.assert_allclose(half.sums, whole.sums, rtol=1e-12)


def test_a_million_frames_far_from_zero_keep_their_variance() -> None:
    frames = np.full((100_000, 1), 1000.0, dtype=np.float32)
    frames[::2] += 1
    cmvn = statistics([frames] * 10).cmvn()
    assert cmvn.mean[0] == pytest.approx(1000.5) and cmvn.std[0] == pytest.approx(0.5, rel=1e-3)


def test_a_feature_that_never_changes_stays_finite() -> None:
    cmvn = statistics([np.full((10, 2), 3.0, dtype=np.float32)]).cmvn()
    assert np.isfinite(cmvn.apply(np.full((4, 2), 3.5, dtype=np.float32))).all()


def test_a_saved_normalisation_is_read_back(tmp_path: Path) -> None:
    cmvn = statistics(list(matrices().values())).cmvn()
    cmvn.save(tmp_path / "cmvn.json")
    found = features.Cmvn.load(tmp_path / "cmvn.json")
    assert found.frames == cmvn.frames
    np.testing.assert_allclose(found.mean, cmvn.mean, atol=1e-6)  # six decimals in the file
    np.testing.assert_allclose(found.std, cmvn.std, atol=1e-6)


def test_tensors_are_normalised_like_arrays() -> None:
    cmvn, matrix = statistics(list(matrices().values())).cmvn(), matrices()["utt-3"]
    np.testing.assert_array_equal(cmvn.apply(torch.from_numpy(matrix)).numpy(), cmvn.apply(matrix))


def test_wrong_normalisations_are_refused(tmp_path: Path) -> None:
    cmvn = statistics(list(matrices().values())).cmvn()
    with pytest.raises(UserError, match="cmvn has 4 values, but the features have 5"):
        cmvn.apply(np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(UserError, match="there are no frames"):
        features.CmvnStats(4).cmvn()
    for content in (
        "nothing",
        '{"mean": [1]}',
        '{"mean": [1], "std": [0], "frames": 1}',
        '{"mean": [], "std": [1], "frames": 1}',
    ):
        (tmp_path / "cmvn.json").write_text(content)
        with pytest.raises(UserError, match="cmvn.json: "):
            features.Cmvn.load(tmp_path / "cmvn.json")


# -- names -----------------------------------------------------------------


def config(**values: object) -> DataConfig:
    return DataConfig(batch=BatchConfig(seconds=10), **values)


def speeds(*factors: float) -> AugmentConfig:
    return AugmentConfig(speeds=factors)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "fbank80"),
        ({"fbank": FbankConfig(num_mel_bins=40)}, "fbank40"),
        ({"augment": speeds(1.1, 1.0, 0.9)}, "fbank80-sp0.9-1.1"),
        ({"features": "online", "augment": speeds(0.9, 1.0)}, "fbank80-online"),
        ({"input": "waveform"}, "waveform"),
        ({"input": "waveform", "augment": speeds(0.9, 1.0)}, "waveform"),
        ({"input": "waveform", "fbank": FbankConfig(dither=1.0)}, "waveform"),
        (
            {"features": "online", "augment": AugmentConfig(noise=NoiseConfig(set="n"))},
            "fbank80-online",
        ),
        ({"workers": 7, "min_seconds": 0.5}, "fbank80"),
    ],
)
def test_a_feature_set_is_named_by_what_it_depends_on(values: dict, name: str) -> None:
    assert features.feature_id(config(**values)) == name


def test_other_settings_get_a_name_of_their_own() -> None:
    others = [
        {"fbank": FbankConfig(**{key: value})}
        for key, value in [
            ("dither", 1.0),
            ("low_hz", 0.0),
            ("high_hz", 7600.0),
            ("rate", 8000),
            ("frame_shift_ms", 12.5),
        ]
    ]
    others += [{"augment": speeds(0.9)}, {"input": "waveform", "fbank": FbankConfig(rate=8000)}]
    names = [features.feature_id(config(**values)) for values in others]
    assert len(set(names)) == len(names)
    assert all(len(name.rsplit("-", 1)[1]) == 6 for name in names)

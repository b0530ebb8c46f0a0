"""Spoken + written digits: the reader on a made folder, then on the real one."""

import numpy as np
import pytest

from mer_dg.data.av_digits import DOMAINS, data_root, load_av_digits
from mer_dg.data.dataset import DataError


@pytest.mark.parametrize(
  ("audio", "shape"),
  [("logmel", (64, 40)), ("logmel_resampled", (20, 40)), ("waveform", (64, 160))],
)
def test_made_folder(folder, audio, shape):
  dataset = load_av_digits(folder, audio=audio)
  assert dataset.kinds == {"audio": "sequence", "image": "image"}
  assert dataset.inputs["audio"].shape == (30, *shape)
  assert dataset.inputs["audio"].dtype == np.float16
  assert dataset.domain_names == DOMAINS
  assert dataset.domain.tolist() == [i // 10 for i in range(30)]
  with np.load(folder / "digit_images.npz") as file:
    np.testing.assert_array_equal(dataset.inputs["image"][..., 0], file["image"][30:])


def test_bad_pairs_are_explained(folder, write_pairs):
  good = [
    {"domain": i // 10, "label": i % 10, "audio_index": i, "image_index": i}
    for i in range(30)
  ]
  for column, value, message in [
    ("audio_index", 30, "row 4 has audio_index 30, which is not a 4"),
    ("image_index", -1, "row 4 has image_index -1"),
    ("image_index", 5, "row 4 has image_index 5, which is not a 4"),
    ("label", "four", "needs the integer columns"),
    ("domain", 3, "domain is 3 in row 4"),
  ]:
    write_pairs(
      folder,
      [
        {**r, column: value} if r["label"] == 4 and r["audio_index"] == 4 else r
        for r in good
      ],
    )
    with pytest.raises(DataError, match=message):
      load_av_digits(folder)
  write_pairs(folder, [{"label": 0}])
  with pytest.raises(DataError, match="needs the integer columns"):
    load_av_digits(folder)


def test_unknown_audio_and_damaged_files(folder):
  with pytest.raises(
    DataError,
    match="audio='mp3' is not one of .'logmel', 'logmel_resampled', 'waveform'",
  ):
    load_av_digits(folder, audio="mp3")
  (folder / "digit_images.npz").write_bytes(b"PK")
  with pytest.raises(DataError, match="digit_images.npz: not an .npz file"):
    load_av_digits(folder)
  (folder / "fsdd.npz").unlink()
  with pytest.raises(DataError, match="fsdd.npz: no such file.*data_prep.av_digits"):
    load_av_digits(folder)


def test_data_root_looks_at_path_environment_and_beside(tmp_path, monkeypatch):
  given, named = tmp_path / "given", tmp_path / "named"
  work, beside = tmp_path / "work", tmp_path / "shared" / "data"
  for folder in (given, named, work, beside):
    folder.mkdir(parents=True)
  monkeypatch.chdir(work)
  monkeypatch.delenv("MER_DG_DATA", raising=False)
  assert data_root() == data_root("") == beside
  monkeypatch.setenv("MER_DG_DATA", str(named))
  assert data_root() == named
  assert data_root(given) == given
  with pytest.raises(DataError, match="path='.*nowhere' is not a folder.*MER_DG_DATA"):
    data_root(tmp_path / "nowhere")
  monkeypatch.setenv("MER_DG_DATA", str(tmp_path / "nowhere"))
  with pytest.raises(DataError, match="MER_DG_DATA='.*nowhere' is not a folder"):
    data_root()
  monkeypatch.delenv("MER_DG_DATA")
  beside.rmdir()
  with pytest.raises(DataError, match="No data folder.*python -m data_prep.av_digits"):
    data_root()


def test_real_set(shared_data):
  dataset = load_av_digits(shared_data)
  assert len(dataset) == 3000
  pairs = np.stack([dataset.domain, dataset.label])
  _, count = np.unique(pairs, axis=1, return_counts=True)
  assert count.tolist() == [100] * 30
  # Durations: median 3358 samples, 20 full windows; 4 clips exceed 64.
  assert np.median(dataset.lengths["audio"]) == pytest.approx(20, abs=1)
  assert (dataset.lengths["audio"] == 64).sum() == 4
  valid = np.arange(64)[None, :] < dataset.lengths["audio"][:, None]
  assert not dataset.inputs["audio"][~valid].any()
  # Loudness differs eightfold between speakers (jackson, theo); not in here.
  peak = np.where(valid[..., None], dataset.inputs["audio"], -99).max(axis=(1, 2))
  loud, quiet = peak[dataset.domain == 0].mean(), peak[dataset.domain == 2].mean()
  assert abs(loud - quiet) < np.log(8)

"""data_prep.av_digits: everything but the downloads."""

import wave

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from data_prep import av_digits as prep
from mer_dg.data.arrays import sample_batch, to_arrays
from mer_dg.data.av_digits import load_av_digits
from mer_dg.data.dataset import DataError
from mer_dg.data.logmel import log_mel
from mer_dg.data.npz import from_arrays, load_npz
from mer_dg.data.sampling import make_pool


def _wav(path, samples, rate=8000, channels=1):
  with wave.open(str(path), "wb") as file:
    file.setnchannels(channels)
    file.setsampwidth(2)
    file.setframerate(rate)
    file.writeframes(samples.astype("<i2").tobytes())


def _recordings(speakers, takes=3, seed=0):
  """``{name: samples}`` of every digit."""
  rng = np.random.default_rng(seed)
  return {
    f"{k}_{speaker}_{take}": rng.integers(-999, 999, rng.integers(900, 4000))
    for speaker in speakers
    for k in range(10)
    for take in range(takes)
  }


def _speech(speakers, takes=3):
  return prep.speech_from_tfds(
    {"audio": clip, "audio/filename": f"{name}.wav".encode()}
    for name, clip in _recordings(speakers, takes).items()
  )


def _images(sources, per_class=10):
  rng = np.random.default_rng(1)
  label = np.repeat(np.arange(10), per_class)
  return {
    s: prep.Images(rng.integers(0, 256, (len(label), 16, 16)).astype(np.uint8), label)
    for s in sources
  }


def _mnist_elements():
  rng = np.random.default_rng(2)
  return [
    {"image": rng.integers(0, 256, (28, 28, 1)).astype(np.uint8), "label": i % 10}
    for i in range(200)
  ]


# --- raw material --------------------------------------------------------------------


def test_wavs_and_tfds_elements_give_the_same_speech(tmp_path):
  recordings = _recordings(("ann", "bob"))
  for name, clip in recordings.items():
    _wav(tmp_path / f"{name}.wav", clip)
  left, right = prep.speech_from_wavs(tmp_path), _speech(("ann", "bob"))
  assert left.name == right.name == sorted(recordings)
  assert left.label.tolist() == [int(name[0]) for name in left.name]
  assert set(left.speaker.tolist()) == {"ann", "bob"}
  for name, a, b in zip(left.name, left.clips, right.clips, strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, recordings[name])


def test_bad_wavs_are_explained(tmp_path):
  with pytest.raises(DataError, match="no files <digit>_<speaker>_<take>.wav"):
    prep.speech_from_wavs(tmp_path)
  path = tmp_path / "3_ann_0.wav"
  _wav(path, np.zeros(100), rate=16000)
  with pytest.raises(DataError, match=r"3_ann_0.wav: .* \(1, 2, 16000\), expected"):
    prep.speech_from_wavs(tmp_path)
  path.write_bytes(b"RIFF")
  with pytest.raises(DataError, match="not a wav file"):
    prep.speech_from_wavs(tmp_path)
  path.rename(tmp_path / "three_ann_0.wav")
  _wav(tmp_path / "three_ann_0.wav", np.zeros(100))
  with pytest.raises(DataError, match="three_ann_0: expected samples named"):
    prep.speech_from_wavs(tmp_path)


def test_semeion(tmp_path):
  rng = np.random.default_rng(0)
  pixels, digit = rng.integers(0, 2, (12, 256)), np.arange(12) % 10
  path = tmp_path / "semeion.data"
  np.savetxt(path, np.hstack([pixels, np.eye(10)[digit]]), fmt="%.4f")
  made = prep.semeion_images(path)
  np.testing.assert_array_equal(made.label, digit)
  np.testing.assert_array_equal(made.image.reshape(12, 256), pixels * 255)
  np.savetxt(path, pixels)
  with pytest.raises(DataError, match="expected 256 pixels and ten columns"):
    prep.semeion_images(path)
  with pytest.raises(DataError, match="nowhere: cannot be read"):
    prep.semeion_images(tmp_path / "nowhere")


def test_images_equal_the_prepared_ones(shared_data):
  pytest.importorskip("sklearn")
  with np.load(shared_data / "digit_images.npz") as file:
    prepared, label, mnist = file["image"], file["label"], file["mnist_28x28"][:500]
  elements = [
    {"image": i[..., None], "label": k} for i, k in zip(mnist, label, strict=False)
  ]
  made = prep.mnist_images(elements)
  np.testing.assert_array_equal(made.image, prepared[:500])
  np.testing.assert_array_equal(made.label, label[:500])
  made = prep.optdigits_images()
  # Halves may be rounded either way.
  assert np.abs(made.image.astype(int) - prepared[10_000:11_797]).max() <= 1
  np.testing.assert_array_equal(made.label, label[10_000:11_797])


# --- pairs ---------------------------------------------------------------------------


def test_three_domains_need_all_speakers_and_sources():
  three = prep.plan_domains(prep.SPEAKERS, tuple(prep.THREE_DOMAINS))
  assert [d.name for d in three] == ["mnist", "optdigits", "semeion"]
  without = prep.plan_domains(prep.SPEAKERS, ("mnist", "optdigits"))
  assert [(d.name, d.source) for d in without[:3]] == [
    ("george", "mnist"),
    ("jackson", "optdigits"),
    ("lucas", "mnist"),
  ]
  five = prep.plan_domains(prep.SPEAKERS[:5], tuple(prep.THREE_DOMAINS))
  assert [d.name for d in five] == list(prep.SPEAKERS[:5])


@pytest.mark.parametrize("speakers", [("ann", "bob", "cy"), prep.SPEAKERS])
def test_pairs_agree_in_class_and_use_everything_once(speakers):
  speech, images = _speech(speakers), _images(prep.THREE_DOMAINS)
  arrays = prep.pair(speech, images, seed=0)
  dataset = from_arrays(arrays, name="pairs")
  assert len(dataset) == 30 * len(speakers)  # Every recording finds an image.
  spoken, written = zip(*(i.split("+") for i in arrays["id"].tolist()), strict=True)
  assert len(set(spoken)) == len(set(written)) == len(dataset)
  plan = prep.plan_domains(speakers, tuple(images))
  for row in range(len(dataset)):
    domain = plan[dataset.domain[row]]
    digit, speaker, _ = spoken[row].split("_")
    source, _, at = written[row].partition("_")
    assert speaker in domain.speakers
    assert source == domain.source
    assert int(digit) == images[source].label[int(at)] == dataset.label[row]
    shown = dataset.inputs["image"][row, :, :, 0]
    np.testing.assert_array_equal(shown, images[source].image[int(at)])
  clip = speech.clips[speech.name.index(spoken[7])]
  expected, frames = log_mel(
    clip, np.array([0]), np.array([len(clip)]), sample_rate=8000
  )
  np.testing.assert_allclose(dataset.inputs["audio"][7], expected[0], atol=1e-3)
  assert dataset.lengths["audio"][7] == frames[0]


def test_pairs_depend_on_the_seed_alone():
  speech, images = _speech(("ann", "bob")), _images(("mnist", "optdigits"))
  ids = [prep.pair(speech, images, seed=s)["id"].tolist() for s in (0, 0, 1)]
  assert ids[0] == ids[1] != ids[2]


def test_what_has_no_partner_is_left_out():
  arrays = prep.pair(_speech(("ann", "bob")), _images(("mnist",), 4), seed=0)
  # Four images per class for two speakers with three takes: 3 for ann, 1 for bob.
  assert np.bincount(arrays["domain"]).tolist() == [30, 10]


# --- the command ---------------------------------------------------------------------


def test_command_writes_a_file_that_loads(tmp_path, monkeypatch, capsys):
  pytest.importorskip("sklearn")
  for name, clip in _recordings(("ann", "bob")).items():
    _wav(tmp_path / f"{name}.wav", clip)
  monkeypatch.setattr(prep, "tfds_source", lambda *_: _mnist_elements())
  out = tmp_path / "av.npz"
  prep.main([f"--out={out}", f"--fsdd={tmp_path}"])
  assert capsys.readouterr().out == "ann: 30 pairs\nbob: 30 pairs\n"
  dataset = load_npz(out)
  assert dataset.kinds == {"audio": "sequence", "image": "image"}
  assert dataset.domain_names == ("ann", "bob")
  assert "audio" in dataset.lengths


def test_command_explains_what_is_missing(tmp_path, monkeypatch):
  out = f"--out={tmp_path / 'av.npz'}"
  with pytest.raises(SystemExit, match="error: .*semeion.data: cannot be read"):
    prep.main([out, f"--semeion={tmp_path / 'semeion.data'}"])

  def broken(*args, **kwargs):
    raise ModuleNotFoundError("No module named\n 'tensorflow'")

  monkeypatch.setattr(prep.tfds, "builder", broken)
  with pytest.raises(SystemExit) as caught:
    prep.main([out])
  message = str(caught.value)
  assert "'spoken_digit' failed: No module named 'tensorflow'" in message
  assert "pip install tensorflow-cpu pydub" in message
  assert "--fsdd=FOLDER" in message
  assert "\n" not in message
  assert not (tmp_path / "av.npz").exists()


# --- TFDS on disk --------------------------------------------------------------------


@pytest.fixture
def prepared(folder, tmp_path):
  pytest.importorskip("array_record")
  pytest.importorskip("importlib_resources")
  builder = prep.AvDigits(data_dir=str(tmp_path / "tfds"), file_format="array_record")
  builder.download_and_prepare(
    download_config=prep.tfds.download.DownloadConfig(manual_dir=str(folder))
  )
  return builder, load_av_digits(folder)


def test_builder_holds_the_dataset(prepared):
  builder, dataset = prepared
  for d, name in enumerate(dataset.domain_names):
    source = builder.as_data_source(name)
    assert (
      sorted(e["index"] for e in source) == np.flatnonzero(dataset.domain == d).tolist()
    )
    for element in source:
      row = element["index"]
      np.testing.assert_array_equal(element["audio"], dataset.inputs["audio"][row])
      np.testing.assert_array_equal(element["image"], dataset.inputs["image"][row])
      assert element["label"] == dataset.label[row]
      assert element["audio_len"] == dataset.lengths["audio"][row]


def test_stream_from_disk_equals_the_resident_sampler(prepared):
  pytest.importorskip("grain")
  import jax
  import jax.numpy as jnp

  from mer_dg.data.stream import stream_batches

  builder, dataset = prepared
  source = builder.as_data_source("mnist+optdigits")  # Shuffled when it was written.
  at = {element["index"]: i for i, element in enumerate(source)}
  key = jax.random.key(0)
  pool = make_pool([np.arange(10), np.arange(10, 20)])
  on_disk = make_pool([[at[row] for row in rows] for rows in pool.rows.tolist()])
  stream = stream_batches(
    source, key=key, pool=on_disk, per_domain=4, read_row=prep.read_row, num_threads=2
  )
  arrays = to_arrays(dataset)
  for step in range(4):
    expected = sample_batch(arrays, key, jnp.int32(step), pool, 4)
    jax.tree.map(np.testing.assert_array_equal, next(stream), jax.device_get(expected))
  stream.close()

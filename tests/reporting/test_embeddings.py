"""Numbers and maps of embeddings: collected, drawn, kept in a file, shown."""

from matplotlib.colors import to_hex
import numpy as np
import pytest
from sklearn.decomposition import PCA

from mer_dg import reporting
from mer_dg.reporting import embeddings, maps, plots

RNG = np.random.default_rng(0)
LABEL = np.arange(24) % 3
DOMAIN = np.arange(24) // 12
Z = RNG.normal(size=(24, 5)) * np.array([5, 3, 1, 1, 1])


def of(training, modality, z=Z):
  return maps.make_map(z, LABEL, DOMAIN, training=training, modality=modality)


@pytest.fixture
def two():
  """Maps of two networks; the held-out domain is the first by name."""
  found = [of(t, m) for m in ("video", "audio") for t in ("erm", "mer/x")]
  return maps.EmbeddingMaps("toy", "a", 0, ("x", "y", "z"), ("a", "b"), tuple(found))


def test_coordinates_are_those_of_scikit_learn():
  pca = PCA(2, svd_solver="full").fit(Z)
  found = of("erm", "video")
  np.testing.assert_allclose(found.points, pca.transform(Z), atol=1e-9)
  np.testing.assert_allclose(found.share, pca.explained_variance_ratio_, rtol=1e-9)


@pytest.mark.parametrize("z", [np.ones((24, 5)), Z[:, :1]])
def test_what_has_no_second_direction_lies_on_a_line(z):
  found = of("erm", "video", z)
  np.testing.assert_array_equal(found.points[:, 1], 0)
  assert found.share[1] == 0
  assert np.isfinite(found.points).all()


def test_a_file_keeps_the_maps(tmp_path, two):
  assert maps.read_maps(tmp_path) is None
  maps.write_maps(tmp_path, two)
  back = maps.read_maps(tmp_path)
  assert (back.target, back.class_names, back.trainings) == (
    *("a", ("x", "y", "z"), ["erm", "mer/x"]),
  )
  for m, was in zip(back.maps, two.maps, strict=True):
    assert (m.training, m.modality) == (was.training, was.modality)
    assert m.share == was.share
    np.testing.assert_allclose(m.points, was.points, atol=1e-4)
    np.testing.assert_array_equal(m.label, was.label)
  (tmp_path / maps.FILE).write_text('{"maps": [')
  with pytest.raises(ValueError, match=r"embedding_maps\.json holds no embedding maps"):
    maps.read_maps(tmp_path)


def test_a_map_has_a_colour_per_class_and_a_mark_per_domain(two):
  fig = plots.embedding_map(two, "erm")
  assert [ax.get_title(loc="left") for ax in fig.axes] == ["erm: video", "erm: audio"]
  scatters = fig.axes[0].collections
  assert len(scatters) == 2
  target, source = (np.asarray(s.get_offsets()) for s in scatters)
  np.testing.assert_allclose(target, two.maps[0].points[:12])
  np.testing.assert_allclose(source, two.maps[0].points[12:])
  colors = [to_hex(c).upper() for c in scatters[0].get_facecolors()]
  assert colors == [plots.style.COLORS[k] for k in LABEL[:12]]
  shapes = [s.get_paths()[0].vertices.shape for s in scatters]
  assert shapes[0] != shapes[1]
  # Each class has its number in the sources and, framed, in the target.
  assert sorted(t.get_text() for t in fig.axes[0].texts) == sorted("012012")
  (legend,) = fig.legends
  labels = [t.get_text() for t in legend.get_texts()]
  assert labels == ["0 x", "1 y", "2 z", "b", "a (target)"]
  with pytest.raises(ValueError, match="training='alone' is not one of"):
    plots.embedding_map(two, "alone")


def records(make):
  """Two methods, two targets; only the last step was examined, ERM's was not best."""
  out = []
  for method in ("erm", "mer"):
    for t, target in enumerate("ab"):
      for step, val in ((1, 0.9), (2, 0.8)):
        metrics = {"val/accuracy": val, "target/accuracy": 0.5 + step / 10}
        metrics["target/without_video/accuracy"] = 0.3
        if step == 2:
          metrics |= {
            "representation/audio/domain_accuracy": 0.5 + 0.2 * t,
            "representation/audio/entropy_kde/val": 3.0,
            "representation/audio/entropy_kde/target": 2.0 + t,
            "target/corrupted/video/fog/1/accuracy": 0.4,
            "target/mean_for_video/accuracy": 0.45,
          }
        out.append(
          make(method=method, target=target, sources=["s"], step=step, metrics=metrics)
        )
  return out


def test_the_last_evaluations_are_read_where_only_they_were_examined(make):
  found = embeddings.representation(records(make), methods=["mer", "erm"])
  assert found.rule == "last"
  assert found.names == ("domain_accuracy", "entropy_kde")
  assert list(found.cells) == [("mer", "audio"), ("erm", "audio")]
  assert found.cells["erm", "audio"]["domain_accuracy"].mean == pytest.approx(0.6)
  assert found.cells["erm", "audio"]["entropy_kde/target"].mean == pytest.approx(2.5)
  corrupted = reporting.corrupted(records(make))
  assert corrupted.rule == "last"
  curve = corrupted.panels["video", "fog"]["erm"]
  assert {s: v.mean for s, v in curve.items()} == {0: 0.7, 1: 0.4}
  missing = reporting.missing_modality(records(make))
  assert (missing.rule, missing.conditions) == (
    *("last", ("all present", "without video", "mean for video")),
  )
  before = [r for r in records(make) if r["step"] == 1]
  assert embeddings.representation(before) is None
  assert reporting.missing_modality(before).rule == "source_val"


def test_the_page_shows_numbers_and_maps(tmp_path, make, two):
  folder = tmp_path / "report"
  folder.mkdir()
  maps.write_maps(folder, two)
  text = reporting.write_report(tmp_path, records(make))
  page = (folder / "index.html").read_text()
  for phrase in (
    *("Inside the embeddings", "domain told (%)", "3.00 → 2.50"),
    *("Embeddings in two dimensions", "mer/x: audio", "a held out, seed 0"),
    *("Networks of the last step", "Encoders trained with mer/x."),
  ):
    assert phrase in page
  assert "(embedding_map_erm.png)" in text
  for stem in ("embedding_map_erm", "embedding_map_mer-x"):
    assert (folder / f"{stem}.png").stat().st_size > 5000
    assert (folder / f"{stem}.svg").exists()
  # 0.7 clean, 0.4 at the one severity there is: 43 % of it are lost.
  assert "<td>40.0 (-43 %)</td>" in page
  # Maps of other modalities are not of these networks.
  other = [make(modalities=["video"]), make(modalities=["video"], method="mer")]
  reporting.write_report(tmp_path, other)
  assert "in two dimensions" not in (folder / "index.html").read_text()

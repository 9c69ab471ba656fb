from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tests.conftest import LPS, write_patient
from unetlib import plots
from unetlib.data.patients import find_cases
from unetlib.show.plots.exploration import BINS, LABELS

SPACING = (1.0, 2.0, 3.0)


@pytest.fixture(scope="module")
def portraits(cohort):
    return plots.portray(find_cases(cohort).cases)


def write(folder, image, mask, affine=LPS):
    """Write one case; return its portrait."""
    for kind, array in (("flair", image), ("seg", mask)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"BraTS2021_00000_{kind}.nii.gz")
    (portrait,) = plots.portray(find_cases(folder).cases)
    return portrait


@pytest.fixture
def boxes():
    """A head 20 x 30 x 16 voxels wide in dark air, and a tumour of 2 x 3 x 4 voxels in it."""
    image, mask = np.zeros((40, 40, 20), np.int16), np.zeros((40, 40, 20), np.uint8)
    image[10:30, 5:35, 2:18] = 100
    mask[14:16, 20:23, 4:8] = 2
    return image, mask


def test_a_portrait_counts_what_is_in_the_files(cohort, portraits):
    assert [one.id for one in portraits] == [f"BraTS2021_{index:05d}" for index in range(10)]
    for one in portraits:
        image, mask = (nib.load(cohort / one.id / f"{one.id}_{kind}.nii.gz").get_fdata() for kind in ("flair", "seg"))
        assert one.tumour_per_slice.tolist() == [np.count_nonzero(mask[:, :, z]) for z in range(6)]
        assert (one.tumour_slices, one.share_of_slices) == (4, 4 / 6)
        assert one.tumour_per_slice.sum() == np.count_nonzero(mask)
        assert one.limits == (image.min(), image.max())
        assert np.isin(one.sample, image[image > image.mean()]).all()


def test_millilitres_follow_the_voxel_size(tmp_path, boxes):
    portrait = write(tmp_path, *boxes, affine=np.diag([-1.0, -2.0, 3.0, 1.0]))
    assert portrait.spacing == SPACING
    assert portrait.millilitres == pytest.approx(2 * 3 * 4 * 6 / 1000)


@pytest.mark.parametrize("margin", [0, 7])
def test_places_are_relative_to_the_head_not_to_the_picture(tmp_path, boxes, margin):
    portrait = write(tmp_path, *(np.pad(array, ((margin, 0), (0, 0), (0, 0))) for array in boxes))
    np.testing.assert_allclose(portrait.centre, [(15 - 10) / 20, (21.5 - 5) / 30, (6 - 2) / 16])
    assert portrait.head_map.shape == (BINS, BINS)
    x, y = np.nonzero(portrait.tumour_map)
    assert 4 / 20 <= x.min() / BINS <= x.max() / BINS < 6 / 20
    assert 15 / 30 <= y.min() / BINS <= y.max() / BINS < 18 / 30


def test_the_order_of_voxels_in_the_file_does_not_matter(tmp_path, boxes):
    for name in ("lps", "ras"):
        (tmp_path / name).mkdir()
    image, mask = boxes
    one = write(tmp_path / "lps", image, mask)
    other = write(tmp_path / "ras", image[::-1, ::-1], mask[::-1, ::-1], np.eye(4))
    np.testing.assert_array_equal(one.tumour_map, other.tumour_map)
    np.testing.assert_allclose(one.centre, other.centre)


def test_a_patient_without_tumour_has_a_portrait_and_a_place_in_the_figures(tmp_path, boxes, portraits):
    image, mask = boxes
    empty = write(tmp_path, image, mask * 0)
    assert (empty.millilitres, empty.tumour_slices, empty.tumour_map.any()) == (0, 0, False)
    assert np.isnan(empty.centre).all()
    plots.positions_figure([*portraits, empty]).draw_without_rendering()
    plots.positions_figure([empty]).draw_without_rendering()


def test_the_head_is_what_is_brighter_than_the_mean(boxes):
    image, _ = boxes
    np.testing.assert_array_equal(plots.find_head(image), image == 100)


def test_only_the_modalities_asked_for_are_shown(cohort, portraits):
    cases = find_cases(cohort).cases[:2]
    figure = plots.case_figure(cases, ["flair"])
    assert [len(axes.images) for axes in figure.axes] == [1, 1]
    titles = [f"{one.id}\nflair, slice {one.tumour_per_slice.argmax()}" for one in portraits[:2]]
    assert [axes.get_title() for axes in figure.axes] == titles


def test_a_sequence_on_another_grid_is_shown_where_flair_is(tmp_path):
    """T1 has half the slices and pixels, and shows the same bright box."""
    write_patient(tmp_path, 0)
    folder = tmp_path / "BraTS2021_00000"
    flair = nib.load(folder / "BraTS2021_00000_flair.nii.gz")
    voxels, affine = np.asarray(flair.dataobj)[::2, ::2, ::2], flair.affine @ np.diag([2, 2, 2, 1])
    nib.save(nib.Nifti1Image(voxels, affine), folder / "BraTS2021_00000_t1.nii.gz")
    nib.save(nib.Nifti1Image(voxels, affine + 900 * np.eye(4, k=3)), folder / "BraTS2021_00000_t2.nii.gz")
    flair_axes, t1_axes, t2_axes = plots.case_figure(find_cases(tmp_path).cases, ["flair", "t1", "t2"]).axes
    one, other = (np.asarray(axes.images[0].get_array(), float).ravel() for axes in (flair_axes, t1_axes))
    assert len(one) == len(other)
    assert np.corrcoef(one, other)[0, 1] > 0.5
    assert t2_axes.get_title() == "t2 lies elsewhere"
    assert not t2_axes.images


@pytest.mark.parametrize(("centre", "row", "column"), [((10, 20), 10, 20), ((0, 29), 3, 26), ((19, 0), 16, 3)])
def test_the_square_of_numbers_is_that_of_the_frame(centre, row, column):
    image = np.arange(600).reshape(20, 30)
    whole, zoom = plots.voxels_figure(image, centre).axes
    assert whole.patches[0].get_xy() == (column - 3.5, row - 3.5)
    patch = image[row - 3 : row + 4, column - 3 : column + 4]
    np.testing.assert_array_equal(zoom.images[0].get_array(), patch)
    written = {text.get_position(): int(text.get_text()) for text in zoom.texts}
    assert written == {(j, i): value for (i, j), value in np.ndenumerate(patch)}


def test_each_label_has_its_colour_and_its_name():
    labels = np.zeros((10, 10), np.uint8)
    labels[2:4], labels[4:8] = 4, 2
    _, coloured, outlined = plots.labels_figure(np.arange(100).reshape(10, 10), labels).axes
    layers = [image.get_array() for image in coloured.images[1:]]
    for layer, label in zip(layers, (2, 4), strict=True):
        np.testing.assert_array_equal(layer[..., 3] > 0, labels == label)
        np.testing.assert_allclose(layer[labels == label][0][:3], to_rgb(LABELS[label]))
    assert [text.get_text() for text in coloured.get_legend().texts] == ["label 2", "label 4"]
    assert outlined.collections
    assert not plots.labels_figure(np.arange(100).reshape(10, 10), labels * 0).axes[2].collections
    of_kaggle = plots.labels_figure(np.arange(100).reshape(10, 10), np.where(labels > 0, 255, 0)).axes[1]
    assert [text.get_text() for text in of_kaggle.get_legend().texts] == ["label 255"]


def test_pictures_keep_order_and_proportions():
    one, two = np.arange(12).reshape(3, 4), np.arange(20).reshape(4, 5)
    left, right = plots.pictures_figure({"one": one, "two": two}, [1, 2.5]).axes
    assert [axes.get_title() for axes in (left, right)] == ["one", "two"]
    np.testing.assert_array_equal(left.images[0].get_array(), one)
    np.testing.assert_array_equal(right.images[0].get_array(), two)
    assert (left.get_aspect(), right.get_aspect()) == (1, 2.5)
    assert [axes.get_aspect() for axes in plots.pictures_figure({"one": one, "two": two}).axes] == [1, 1]


def test_histograms_have_area_one_each():
    samples = {"few": np.arange(10.0), "many": np.arange(5, 10, 0.01)}
    (axes,) = plots.histograms_figure(samples, "intensity").axes
    assert [text.get_text() for text in axes.get_legend().texts] == ["few", "many"]
    for patch in axes.patches:
        x, y = patch.get_xy()[:-1].T
        assert abs(np.trapezoid(y, x)) == pytest.approx(1)


def test_intensities_are_shown_as_stored_and_scaled(portraits):
    raw, scaled = plots.intensities_figure(portraits).axes
    order = sorted(portraits, key=lambda one: np.median(one.sample))
    order = [*order[1:-1], order[0], order[-1]]
    for one, before, after in zip(order, raw.lines, scaled.lines, strict=True):
        low, high = one.limits
        np.testing.assert_allclose((before.get_xdata() - low) / (high - low), after.get_xdata(), rtol=1e-4)
        counts, _ = np.histogram(one.sample, 30)
        np.testing.assert_allclose(before.get_ydata(), counts / counts.max())
        assert after.get_ydata().max() == 1
    handles, names = scaled.get_legend_handles_labels()
    assert dict(zip(names, handles, strict=True)) == {
        "lowest as stored": scaled.lines[-2],
        "highest as stored": scaled.lines[-1],
    }
    assert all(raw.get_xlim()[0] < tick < raw.get_xlim()[1] for tick in raw.get_xticks())


def test_sizes_are_in_order_with_their_median(portraits):
    many = [replace(portraits[0], tumour_per_slice=np.array([1000 * ml])) for ml in (7, 1, 100, 2)]
    (axes,) = plots.sizes_figure(many).axes
    assert [bar.get_height() for bar in axes.patches] == [1, 2, 7, 100]
    assert axes.lines[0].get_ydata()[0] == 4.5


def test_the_heat_map_counts_patients(portraits):
    above, front, _ = plots.positions_figure(portraits).axes
    heat = sum(one.tumour_map.astype(int) for one in portraits)
    assert heat.max() > 1
    np.testing.assert_array_equal(above.images[0].get_array(), heat.T)
    dots = np.array([(one.centre[0], one.centre[2]) for one in portraits])
    np.testing.assert_allclose(front.collections[0].get_offsets(), dots)


def test_profiles_show_where_tumour_begins_and_ends(tmp_path, boxes, portraits):
    rare = write(tmp_path, *boxes)  # 4 slices of 20
    strips, shares = plots.profiles_figure([*portraits, rare]).axes[:2]
    picture = strips.images[0].get_array()
    np.testing.assert_array_equal(np.flatnonzero(picture[0]), np.arange(20, 40))  # slices 4 to 7 of 20, in percent
    assert picture[0].max() == pytest.approx(100 * 6 / 1600)
    np.testing.assert_allclose([bar.get_width() for bar in shares.patches], [20] + [400 / 6] * 10)


def test_every_figure_carries_the_note(portraits):
    image = np.arange(400).reshape(20, 20)
    for figure in (
        plots.voxels_figure(image, (9, 9), note="a note"),
        plots.labels_figure(image, image > 9, "a note"),
        plots.pictures_figure({"one": image}, note="a note"),
        plots.histograms_figure({"one": image.ravel()}, "x", "a note"),
        plots.intensities_figure(portraits, "a note"),
        plots.sizes_figure(portraits, "a note"),
        plots.positions_figure(portraits, "a note"),
        plots.profiles_figure(portraits, "a note"),
    ):
        assert figure.get_supxlabel() == "a note"

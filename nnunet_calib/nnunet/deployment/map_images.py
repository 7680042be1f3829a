"""Writing of maps as images that lie exactly over nnU-Net's segmentation of the same case.

nnU-Net's writers take label maps only. Each function here is the counterpart of one of them: it undoes what the reader
does to the axes, and takes size, spacing, origin and direction from the segmentation.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.io.wording import last_line
from nnunet_calib.nnunet.deployment.map_values import MapOptions

_RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def _itk(array: NDArray[Any], segmentation: Path, target: Path, reorient: bool = False) -> None:
    import SimpleITK as sitk

    header = sitk.ImageFileReader()
    header.SetFileName(str(segmentation))
    header.ReadImageInformation()
    spacing, origin, direction = header.GetSpacing(), header.GetOrigin(), np.array(header.GetDirection())
    dimension = len(spacing)
    if dimension == 2:  # nnU-Net's arrays have three axes
        array = array[..., 0, :, :]
    if reorient:
        code = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(direction.tolist())

        def original(volume: NDArray[Any]) -> NDArray[Any]:
            image = sitk.GetImageFromArray(volume)
            image.SetDirection(_RAS)
            return sitk.GetArrayFromImage(sitk.DICOMOrient(image, code))

        array = np.stack([original(channel) for channel in array]) if array.ndim > 3 else original(array)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=False)
    whole = np.eye(array.ndim)
    whole[:dimension, :dimension] = direction.reshape(dimension, dimension)
    more = array.ndim - dimension  # the axis of the channels
    image.SetSpacing((*spacing, *[1.0] * more))
    image.SetOrigin((*origin, *[0.0] * more))
    image.SetDirection(whole.ravel().tolist())
    sitk.WriteImage(image, str(target), True)


def _itk_reoriented(array: NDArray[Any], segmentation: Path, target: Path) -> None:
    _itk(array, segmentation, target, reorient=True)


def _nibabel(array: NDArray[Any], segmentation: Path, target: Path, reorient: bool = False) -> None:
    import nibabel
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    affine = nibabel.Nifti1Image.from_filename(segmentation).affine
    array = array.transpose()
    if reorient:
        array = apply_orientation(array, ornt_transform(axcodes2ornt("RAS"), io_orientation(affine)))
    nibabel.save(nibabel.Nifti1Image(array, affine), target)


def _nibabel_reoriented(array: NDArray[Any], segmentation: Path, target: Path) -> None:
    _nibabel(array, segmentation, target, reorient=True)


def _natural(array: NDArray[Any], segmentation: Path, target: Path) -> None:
    from skimage import io

    if target.suffix == ".tif":
        _tiff(array[..., 0, :, :], segmentation, target)
    else:
        io.imsave(target, array[0], check_contrast=False)


def _tiff(array: NDArray[Any], segmentation: Path, target: Path) -> None:
    import tifffile

    # three or four channels are not colours
    tifffile.imwrite(target, array, compression="zlib", photometric="minisblack")


_WRITERS: dict[str, Callable[[NDArray[Any], Path, Path], None]] = {
    "SimpleITKIO": _itk,
    "SimpleITKIOWithReorient": _itk_reoriented,
    "NibabelIO": _nibabel,
    "NibabelIOWithReorient": _nibabel_reoriented,
    "NaturalImage2DIO": _natural,
    "Tiff3DIO": _tiff,
}


def check_format(reader: Any, file_ending: str, options: MapOptions) -> None:
    """Raise ValueError for maps that files of this ending cannot hold."""
    if type(reader).__name__ not in _WRITERS:
        raise ValueError(
            f"expected a dataset read by one of nnU-Net's {', '.join(_WRITERS)}, found {type(reader).__name__}: no "
            f"maps can be written for it, but nnUNetv2_predict --save_probabilities writes .npz"
        )
    types = {".png": ("uint8", "uint16"), ".bmp": ("uint8",)}.get(file_ending.lower())
    if types and options.dtype not in types:
        raise ValueError(
            f"expected --dtype {' or '.join(types)} for images that end with {file_ending}, got {options.dtype}, which "
            f"they cannot hold"
        )
    if options.layout == "4d" and (types or file_ending.lower() == ".gipl"):
        raise ValueError(
            f"expected --layout files for images that end with {file_ending}, got 4d: they hold one map each"
        )


def write_map(array: NDArray[Any], segmentation: Path, target: Path, reader: Any) -> None:
    """Write a map in the geometry of a segmentation; the file is either complete or absent.

    Args:
        array: (*spatial) or (C, *spatial) on the axes of nnU-Net's reader.
        segmentation: nnU-Net's segmentation of the same case.
        target: path with the same file ending.
        reader: nnU-Net's reader of the dataset.

    Raises:
        OSError: if the file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    spacing_file = segmentation.with_suffix(".json")
    if type(reader).__name__ == "Tiff3DIO" and spacing_file.is_file():
        with replaced_when_complete(target.with_suffix(".json")) as temporary:
            shutil.copyfile(spacing_file, temporary)
    try:
        with replaced_when_complete(target) as temporary:
            _WRITERS[type(reader).__name__](array, segmentation, temporary)
    except (OSError, RuntimeError) as error:  # RuntimeError: ITK's, of several lines
        raise OSError(
            f"expected to write {target}, could not ({last_line(error)}): is there space and permission?"
        ) from error


def in_physical_space(points: NDArray[np.float64], properties: dict[str, Any]) -> NDArray[np.float64]:
    """Return points in mm in the coordinates of their image, (n, 3), with x to the left and y to the back.

    Args:
        points: (n, axes) positions in voxels on the axes of nnU-Net's reader.
        properties: what the reader tells of the image.

    Returns:
        NaN for formats without such coordinates, and for the third one of images without a third dimension.
    """
    xyz, found = points[:, ::-1], np.full((len(points), 3), np.nan)
    if (itk := properties.get("sitk_stuff")) is not None:
        spacing, origin = np.array(itk["spacing"]), np.array(itk["origin"])
        axes = len(spacing)
        direction = np.reshape(itk["direction"], (axes, axes))
        found[:, :axes] = origin + (xyz[:, :axes] * spacing) @ direction.T
    elif (nifti := properties.get("nibabel_stuff")) is not None:
        affine = nifti.get("reoriented_affine", nifti["original_affine"])
        found[:] = (xyz @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)  # NIfTI's x and y point right and forward
    return found

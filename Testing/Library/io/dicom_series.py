"""CT series as a scanner stores them, written with pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from FewShotSegLib.data.volume import Volume
from Testing.Library.annotated import geometry

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (6, 9, 11)
# DICOM's row, column and slice direction are right-handed in LPS; a half turn about z keeps that.
OBLIQUE = LPS @ geometry((0.7, 0.9, 3.0))


def write_series(folder: Path, volume: Volume, patient: str = "Doe^Jane") -> Path:
    """One file per slice along k, in an order of names that is not the order of positions."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = (generate_uid(entropy_srcs=[str(folder), what]) for what in ("series", "study", "frame"))
    lps = LPS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    for k, pixels in enumerate(volume.array.astype(np.int16)):
        slice_ = pydicom.Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid(
            entropy_srcs=[series, str(k)]
        )
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate, slice_.PatientSex = patient, "7", "", "O"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.StudyDate, slice_.StudyTime, slice_.StudyID, slice_.AccessionNumber = "20261126", "120000", "1", "1"
        slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "CT", 3, k + 1
        slice_.ReferringPhysicianName = slice_.PositionReferenceIndicator = ""
        slice_.Manufacturer = "nobody"
        slice_.ImagePositionPatient = [f"{x:.6f}" for x in lps[:3, 3] + k * lps[:3, 2]]
        slice_.ImageOrientationPatient = [f"{x:.8f}" for x in (lps[:3, :2] / spacing[:2]).T.ravel()]
        slice_.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        slice_.SliceThickness = f"{spacing[2]:.6f}"
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleIntercept, slice_.RescaleSlope = 0, 1
        slice_.PixelData = np.ascontiguousarray(pixels).tobytes()
        slice_.save_as(folder / f"{(k * 7) % 10}_{k}.dcm", enforce_file_format=True)
    return folder

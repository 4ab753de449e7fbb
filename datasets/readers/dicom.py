SUFFIXES = (".dcm", ".dicom", ".ima")


def is_dicom(path):
    from datasets import dicom

    return dicom.is_dicom(path)


def dicom_files(path):
    from datasets import dicom

    return dicom.dicom_files(path)


def read_series(*a):
    from datasets import dicom

    return dicom.read_series(*a)

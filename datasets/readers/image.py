SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def read_image(path):
    from datasets import images

    return images.read_picture(path, opaque=True)


def read_mask(path):
    from datasets import images

    return images.read_mask(path, palette=True)

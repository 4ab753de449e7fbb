from datasets import images


def label_table(found, num_classes=0, *, values=(), threshold=0):
    if threshold:
        return (0, 255)
    if values:
        return tuple(values)
    return images.label_table(found, num_classes)


def to_classes(mask, table, where, *, threshold=0, ignore=None):
    import numpy as np

    if threshold:
        return (mask >= threshold).astype(np.uint8)
    return images.to_classes(mask, table, where)

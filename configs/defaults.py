"""Every key of the configuration with its default; a yaml lists only what differs."""

from __future__ import annotations

from yacs.config import CfgNode

_R50_VIT = {
    "HIDDEN_SIZE": 768,
    "NUM_HEADS": 12,
    "NUM_LAYERS": 12,
    "MLP_DIM": 3072,
    "CNN_WIDTH": 64,
    "CNN_UNITS": [3, 4, 9],
    "NORM_GROUPS": 32,
    "DROPOUT_RATE": 0.1,
    "ATTENTION_DROPOUT_RATE": 0.0,
}

_WINDOW = {"DATA.WINDOW": [-125.0, 275.0]}
_CT = {
    "MODEL.NUM_CLASSES": 9,
    "MODEL.IN_CHANNELS": 1,
    "DATA.INTENSITY": "window",
    "DATA.AXIS_ORDER": "zxy",
    **_WINDOW,
}
_PICTURES = {
    "MODEL.NUM_CLASSES": 2,
    "MODEL.IN_CHANNELS": 3,
    "DATA.INTENSITY": "range",
    "DATA.AXIS_ORDER": "zyx",
    "DATA.LABEL_VALUES": [0, 255],
    **_WINDOW,
}
# What an empty key stands for, by data set, unless its files say otherwise; of a folder of one's own they always do.
OF_DATASET = {
    "Synapse": _CT,
    "Phantom": _CT,
    "ACDC": {**_CT, "MODEL.NUM_CLASSES": 4, "DATA.INTENSITY": "percentile"},
    "GlaS": _PICTURES,
    "MoNuSeg": _PICTURES,
    "Folder": _WINDOW,
}


def default_config() -> CfgNode:
    """A fresh configuration, not frozen."""
    return CfgNode(
        {
            "OUTPUT_DIR": "",
            "SEED": 1234,
            "DETERMINISTIC": True,
            "GPU_ID": 0,
            "N_GPU": 1,
            "PRECISION": "float32",  # of a training step: float32, tf32 (GPU alone), bfloat16 (autocast)
            "COMPILE": False,  # torch.compile: minutes at the start, faster steps after
            "DATA": {
                "DATASET": "Synapse",
                "ROOT_PATH": "",  # default: data/<dataset>
                "VOLUME_PATH": "",  # test volumes; default: the root path
                "LIST_DIR": "",  # default: lists/lists_<dataset>, the root's own lists, the shipped split
                "IMG_SIZE": 224,  # side of the network's input in pixels, or [H, W]
                "BATCH_SIZE": 24,  # of all processes together
                "NUM_WORKERS": 2,
                "START_METHOD": "",  # of the workers: fork, spawn, forkserver; none: the system's own
                "CACHE": "",  # folder for a memory-mapped copy of the training slices; none: read the files each time
                "VAL_CASES": 0,  # training cases held out for validation; 0 as published
                "FOLDS": 0,  # cross-validation: parts that the training cases fall into; 0: none
                "FOLD": 0,  # of these, the part that is held out and tested on
                # How stored numbers become [0, 1]: window (WINDOW), percentile (0.5 to 99.5 of each volume), range (all
                # that 8 or 16 bits hold). This and the keys down to LABEL_VALUES: empty is the data set's own.
                "INTENSITY": "",
                "WINDOW": [],  # low and high, in HU
                "AXIS_ORDER": "",  # of arrays (D, H, W), as axes of the NIfTI file, such as zxy
                "ORIENTATION": "",  # where a file's x, y, z are to point before that, such as LPS; stored: as they do
                "AXIS": "",  # of own volumes, that slices are taken along: x, y or z of ORIENTATION; none: the coarsest
                "LABEL_VALUES": [],  # what mask files hold for class 0, 1, ...; none: the class itself
                "PHANTOM": {"SIZE": 96, "DEPTH": 32, "TRAIN_CASES": 24, "TEST_CASES": 8, "SEED": 2021},
            },
            "AUG": {
                "ROT_FLIP": 0.5,  # probability of a rotation by k*90 degrees and a flip
                "ROTATE": 0.5,  # probability, where that did not happen, of a rotation by up to 20 degrees
                "REPEAT_CHOICES": False,  # published fault: the same choices at the same place of every epoch
            },
            "MODEL": {
                "TYPE": "swin_unet",
                "NAME": "",  # a label; published yamls carry it
                "NUM_CLASSES": 0,  # the background included; 0: the data set's own
                "IN_CHANNELS": 0,  # 1, or 3 for colour; 0: the data set's own
                "PRETRAIN_CKPT": "",  # weights to start from: a file, or a list of files
                "DROP_RATE": 0.0,  # this and the next are Swin-UNet's; published keys
                "DROP_PATH_RATE": 0.2,
                "SWIN": {
                    "PATCH_SIZE": 4,
                    "IN_CHANS": 3,  # published key; the stem has three channels and repeats one to three
                    "EMBED_DIM": 96,
                    "DEPTHS": [2, 2, 2, 2],
                    "DECODER_DEPTHS": [2, 2, 2, 1],  # published key that nothing reads: the decoder takes DEPTHS
                    "NUM_HEADS": [3, 6, 12, 24],
                    "WINDOW_SIZE": 7,
                    "MLP_RATIO": 4.0,
                    "QKV_BIAS": True,
                    "FINAL_UPSAMPLE": "expand_first",  # published key; the one form there is
                },
                "UNET": {"BILINEAR": True, "WIDTH": 64},
                "UCTRANSNET": {
                    "BASE_CHANNEL": 64,
                    "NUM_LAYERS": 4,
                    "NUM_HEADS": 4,
                    "EXPAND_RATIO": 4,
                    "EMBEDDINGS_DROPOUT_RATE": 0.1,
                    "ATTENTION_DROPOUT_RATE": 0.1,
                    "DROPOUT_RATE": 0.0,
                },
                "HIFORMER": {
                    "USE_FUSION": False,  # the published code computes its cross-scale fusion and throws it away
                    "EMBED_DIM": 96,
                    "SWIN_DEPTHS": [2, 2, 6],
                    "NUM_HEADS": [3, 6, 12],
                    "WINDOW_SIZE": 7,
                    "CNN_WIDTH": 64,
                    "CNN_DEPTHS": [3, 4, 6],
                    "FUSION_HEADS": [6, 12],
                    "DECODER_WIDTH": 128,
                    "DROP_RATE": 0.0,
                    "DROP_PATH_RATE": 0.1,
                },
                "TRANSUNET": {
                    **_R50_VIT,
                    "HEAD_CHANNELS": 512,
                    "DECODER_CHANNELS": [256, 128, 64, 16],
                },
                "TRANS_CASCADE": {
                    **_R50_VIT,
                    "RECREATE_EMBEDDINGS": False,  # published fault: fresh random embeddings at every forward
                },
                "PVT_CASCADE": {
                    "EMBED_DIMS": [64, 128, 320, 512],
                    "DEPTHS": [3, 4, 6, 3],
                    "NUM_HEADS": [1, 2, 5, 8],
                    "MLP_RATIOS": [8.0, 8.0, 4.0, 4.0],
                    "DROP_RATE": 0.0,
                    "ATTN_DROP_RATE": 0.0,
                    "DROP_PATH_RATE": 0.1,
                },
            },
            "LOSS": {
                "CE_WEIGHT": 0.4,
                "DICE_WEIGHT": 0.6,
                "LAMBDA_1": 0.015,  # semantic consistency (SCR)
                "LAMBDA_2": 0.015,  # internal feature distillation (IFD)
                "DISTANCE": "mse",  # between channels: mse as published, cosine, normalized_mse (no scale moves them)
                "WARMUP_EPOCHS": 0.0,  # both weights rise linearly over so many epochs; 0 as published
                "GRADIENT_FACTOR": 10.0,  # warn of a term with so many times the segmentation's gradient; 0: no look
                "GRADIENT_FREQ": 200,  # steps between looks at that; each takes three backward passes more
            },
            "TRAIN": {
                "EPOCHS": 150,
                "MAX_ITERATIONS": 0,  # stop, and end the schedule, after this many steps; 0: EPOCHS alone decide
                "BASE_LR": 0.01,
                "SCALE_LR": True,  # published rule: base_lr * batch/24 where the batch is not 24 and divisible by 6
                "OPTIMIZER": "sgd",  # sgd, adamw
                "MOMENTUM": 0.9,
                "WEIGHT_DECAY": 1e-4,
                "LR_SCHEDULE": "poly",  # poly, constant
                "LR_POWER": 0.9,
                "WARMUP_STEPS": 0,  # linear rise to the base rate; 0 as published
                "CLIP_GRAD": 0.0,  # largest gradient norm; 0: no clipping, as published
                "ACCUMULATION_STEPS": 1,
                "USE_CHECKPOINT": False,  # recompute blocks in the backward pass
                "SYNC_BN": False,  # batch norm over the whole batch of several processes; on GPUs alone
                "SAVE_FREQ": 0,  # epochs between epoch_N.pth files; 0: none
                "SAVE_SECONDS": 60.0,  # between saves of last.pth, in mid-epoch too; 0: a save after every batch
                "LOG_FREQ": 20,  # steps between lines of metrics.jsonl
                "IMAGE_FREQ": 200,  # steps between TensorBoard panels
                "VAL_FREQ": 10,  # epochs between validations
                "VAL_DICE": "per_class",  # that chooses best.pth: per_class, or lumped, the foreground as one class
            },
            "TEST": {
                "BATCH_SIZE": 24,
                "PRECISION": "float32",  # of the prediction, as PRECISION
                "INFERENCE": "zoom",  # zoom: slices resized to the network's size, as published; slide: windows of it
                "OVERLAP": 0.5,  # of neighbouring windows, from 0 to below 1
                "METRICS": "fast",
                # Where truth and prediction are compared: at the image's own size, or, both brought there by nearest
                # neighbour, at the network's, as the shared code for GlaS and MoNuSeg does; then without figures in mm.
                "SCORE_AT": "image",
                "ASSD": "pooled",  # mean over all surface distances, as MedPy from 0.5 on; directed: as up to 0.4
            },
            "ENVIRONMENT": {},  # versions and commit of a run, written by train.py; never read
        }
    )

"""asrtool: recipes for end-to-end speech recognition.

asrtool.train("train.yaml", train="dump/train", valid="dump/dev", vocab="data/vocab", exp="exp/a")
asrtool.load("exp/a").recognize("a.wav").text
"""

from __future__ import annotations

from asrtool.errors import UserError

__all__ = ["UserError", "load", "train"]
__version__ = "0.1.0"


# The functions import torch, which takes seconds: reading the version must not wait for it.


def load(path, **options):
    """Load a trained experiment, a packed model or one of the Hugging Face Hub: a `Recognizer`.

    path: a folder, or "hf:user/model[@revision]", which is downloaded.

    options: `decode`, `device`, `weights`, `lm` and `imports`, as in
    `asrtool.recognizer.Recognizer.load`.
    """
    from asrtool.recognizer import Recognizer

    return Recognizer.load(path, **options)


def train(config, *, train, valid, vocab, exp, **options):
    """Train the phases of a config into the folder `exp`, as `asrtool train` does.

    config: a train_*.yaml. train, valid: folders that stage 1 wrote. vocab: the folder that stage 2
    wrote. options: `overrides`, `text`, `init`, `import_from` and `force`, as in
    `asrtool.training.run`.
    """
    from asrtool.training import run

    return run(config, train=train, valid=valid, vocab=vocab, exp=exp, **options)

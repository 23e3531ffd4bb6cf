"""Components from outside asrtool: importing this package registers them."""

from my_package import bag, blstm

__all__ = ["bag", "blstm"]

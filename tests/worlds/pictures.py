"""Names of the files that a fold's figures are drawn into."""

from nnunet_calib.results.layout import ENDINGS, FIGURES

PICTURES = tuple(f"{name}.{ending}" for name in FIGURES for ending in ENDINGS)

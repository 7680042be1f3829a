"""Names of the files that a fold's figures are drawn into."""

from nnunet_calib.results.layout import ENDINGS, EXPECTED_FIGURE, FIGURES

PICTURES = tuple(f"{name}.{ending}" for name in FIGURES for ending in ENDINGS)
OF_MERGED_FOLDS = (*PICTURES, *(f"{EXPECTED_FIGURE}.{ending}" for ending in ENDINGS))

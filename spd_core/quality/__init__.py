"""How good the images are: features, Frechet and kernel distances with intervals and floors, label agreement.

The distances use the packaged EfficientNet-Lite0 features (`spd_core.quality.features`), so none of them is the
published FID or KID: a figure only compares with another one of the same extractor, reference and number of images.
"""

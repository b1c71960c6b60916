"""Figures of merit of clips, each the same for rendered and for generated ones, so that renders calibrate them."""

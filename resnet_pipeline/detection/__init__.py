"""Localisation, detection and segmentation with the paper's networks (its appendices A to C): a task beside others."""

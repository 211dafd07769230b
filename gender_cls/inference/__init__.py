"""Prediction with a trained model, without Lightning or Hydra."""

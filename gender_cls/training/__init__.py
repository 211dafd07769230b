"""Training and its evaluation by Lightning and Hydra; importing it registers the resolvers of the configuration."""

from gender_cls.training import config as config

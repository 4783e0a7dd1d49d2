"""A site's own user model, without a name: an app that the tests' other site installs."""

"""Times with seconds: in the demo, access tokens are valid for 90 seconds at most."""

DATETIME_FORMAT = "j M Y, H:i:s"

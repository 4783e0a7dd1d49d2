"""Times with their seconds: in the demo an access token lives no longer than 90."""

DATETIME_FORMAT = "j M Y, H:i:s"

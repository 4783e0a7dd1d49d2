"""What claims about performance and endurance rest on. Not part of what is released."""

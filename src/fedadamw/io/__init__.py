"""Files and text from outside: full disks, hostile YAML, safe output."""

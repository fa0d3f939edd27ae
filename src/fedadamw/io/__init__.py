"""Files and untrusted text: full disks, hostile YAML, safe output."""

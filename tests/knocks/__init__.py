"""Hard knocks: disks that fill or fail, kills, hostile places and sizes."""

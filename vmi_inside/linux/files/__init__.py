"""Files: descriptors, paths, inodes and what is cached of them; mounts and block devices."""

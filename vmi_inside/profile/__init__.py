"""What a kernel build is made of: symbols and types, learned from the guest itself."""

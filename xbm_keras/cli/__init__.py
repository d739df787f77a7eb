"""The commands: one file each. They look down on all other folders, and nothing imports them."""

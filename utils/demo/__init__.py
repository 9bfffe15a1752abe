"""Generate the demo data: scenes, images, and expressions that single out one object."""

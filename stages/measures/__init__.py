"""What is measured of generated images: pure functions of arrays, a file a measure."""

"""From a trained network to the files of a bundle, and the proof that they are one network."""

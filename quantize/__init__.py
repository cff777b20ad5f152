"""The workstation side: data, training, calibration, export and the proof of what each step costs."""

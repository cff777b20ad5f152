"""Signal processing on the stream, in numpy alone: scipy.signal would cost 80 MB and most of a second."""

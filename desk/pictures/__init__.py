"""Pictures without the web, drawn with matplotlib: an event, a day, a contact sheet, rates (the extra ``plot``)."""

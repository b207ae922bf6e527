"""Arrays, boxes, pictures and files of labels. Nothing here imports from the rooms above."""

"""Read data sets, partition them over clients, and make batches.

How an image becomes a tensor: sources.py reads a data set, columns.py and classes.py its labels, image_survey.py the
headers of its images. image_decoding.py decodes each image to an array, pixel_cache.py keeps the arrays, images.py puts
pixels and labels together, and image_task.py makes batches of tensors.
"""

"""Image files -> their properties -> does a property of the files give the label away?"""

"""Codebirds: rendered birds whose class is a codeword, so that every sufficient cause of a class is known.

A class is a word of an error-correcting code with n = 5 symbols, of which any k = 2 determine the other three. Each
symbol is shown by one part of the bird through its own kind of cue: hue, texture, two silhouettes, count. So any two
parts suffice to tell the class and no single part does: there are ten minimal sufficient causes, and a classifier that
has learned them all survives the loss of any three parts. The scene behind the bird follows the class in 90 % of the
training images and causes nothing: it is the shortcut. Shifted test sets change the scene, the style, or the parts.
The package needs numpy alone. Equal settings give equal bytes on every machine.

    from codebirds.birds import Codebirds
    from codebirds.factors import Settings
    birds = Codebirds(Settings(train=1000), threads=2)
    images = birds.images(birds.factors("train"))
"""

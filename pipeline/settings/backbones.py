"""The backbones to choose from, known without importing Keras, which takes seconds."""

TORCH_SUFFIXES = (".pth", ".pt")  # of files of weights that PyTorch has saved
TORCHVISION = ("AlexNet", "GoogLeNet")  # the backbones whose weights may be in such a file
# Name -> number of layers without the classifier, and smallest IMAGE_SIZE. The first three are in `pipeline/networks/`;
# the others are the constructors in keras.applications that support channels_first.
BACKBONES = {
    "SmallConvNet": (18, 8),
    "AlexNet": (15, 63),
    "GoogLeNet": (195, 15),
    "EfficientNetB0": (238, 32),
    "EfficientNetB1": (340, 32),
    "EfficientNetB2": (340, 32),
    "EfficientNetB3": (385, 32),
    "EfficientNetB4": (475, 32),
    "EfficientNetB5": (577, 32),
    "EfficientNetB6": (667, 32),
    "EfficientNetB7": (814, 32),
    "EfficientNetV2B0": (270, 32),
    "EfficientNetV2B1": (334, 32),
    "EfficientNetV2B2": (349, 32),
    "EfficientNetV2B3": (409, 32),
    "EfficientNetV2L": (1028, 32),
    "EfficientNetV2M": (740, 32),
    "EfficientNetV2S": (513, 32),
    "InceptionResNetV2": (780, 75),
    "InceptionV3": (311, 75),
    "MobileNet": (86, 32),
    "MobileNetV2": (154, 32),
    "MobileNetV3Large": (187, 32),
    "MobileNetV3Small": (157, 32),
    "ResNet101": (345, 32),
    "ResNet101V2": (377, 32),
    "ResNet152": (515, 32),
    "ResNet152V2": (564, 32),
    "ResNet50": (175, 32),
    "ResNet50V2": (190, 32),
    "VGG16": (19, 32),
    "VGG19": (22, 32),
    "Xception": (132, 71),
}

# The official classifier has no window that is larger than its map, and no surroundings where there
# is one window alone.
_base_ = '../imagenet/focal_t.py'

model = dict(backbone=dict(window_size=(14, 14, 14, 7), expand_sizes=(3, 3, 0, 0)))

def figure(*a):
    pass


def table():
    return ""

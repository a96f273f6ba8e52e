"""placeholder"""
def costs_table(): return ""

"""Well-known text of a projected system and of heights, to be joined and changed by tests."""

GEOGRAPHIC = (
    'GEOGCS["b",DATUM["d",SPHEROID["s",6378137,298.257222101]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]]'
)
FLAT = (
    f'PROJCS["a",{GEOGRAPHIC},PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",9],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["US survey foot",0.304800609601219]]'
)
METRIC = FLAT.replace('"US survey foot",0.304800609601219', '"meter",1')
HEIGHTS = 'VERT_CS["h",VERT_DATUM["v",2005],UNIT["meter",1],AXIS["Up",UP]]'

"""The scenes of the corpus, one small drawing function each; `SCENES` names them.

A scene takes its lettering, line by line, and draws the surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .canvas import BLACK, CLOTHES, HEIGHT, SKIN, WHITE, WIDTH, Canvas, Colour, blend

Scene = Callable[[Canvas, Sequence[str]], None]

NIGHT: Colour = (16, 20, 48)
SKY: Colour = (132, 190, 232)
LAWN: Colour = (74, 138, 72)
WOOD: Colour = (128, 88, 56)
YELLOW: Colour = (250, 208, 70)
BRIGHT: tuple[Colour, ...] = ((196, 44, 52), (28, 92, 168), (22, 122, 88), (120, 52, 138), (206, 96, 20))
DEEP: tuple[Colour, ...] = ((28, 40, 74), (64, 24, 40), (24, 58, 54), (52, 36, 74), (40, 40, 44))
PALE: tuple[Colour, ...] = ((246, 236, 214), (226, 238, 246), (244, 226, 226), (228, 242, 226), (238, 232, 246))


# Places


def road_sign(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A green sign on two posts beside a road."""
    canvas.gradient(SKY, (224, 238, 246), (0, 0, WIDTH, 330))
    canvas.clouds(2, lowest=60)
    canvas.gradient((150, 170, 92), (104, 132, 66), (0, 330, WIDTH, HEIGHT))
    canvas.pen.polygon([(250, 330), (330, 330), (640, 480), (60, 480)], fill=(92, 92, 98))
    canvas.pen.polygon([(287, 335), (293, 335), (345, 480), (320, 480)], fill=YELLOW)
    for x in (130, 510):
        canvas.pen.rectangle((x - 8, 270, x + 8, 420), fill=(120, 122, 126))
    canvas.plate((60, 70, 580, 290), (12, 104, 62), WHITE, 22, 8)
    canvas.lettering((90, 85, 550, 275), lettering, WHITE)


def welcome_sign(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A wooden board in a meadow with hills behind it."""
    canvas.gradient((250, 200, 140), (252, 236, 204), (0, 0, WIDTH, 300))
    canvas.pen.ellipse((-120, 200, 360, 520), fill=(112, 150, 110))
    canvas.pen.ellipse((260, 220, 800, 560), fill=(92, 132, 96))
    canvas.gradient((126, 168, 84), (86, 128, 58), (0, 350, WIDTH, HEIGHT))
    for x in (120, 500):
        canvas.pen.rectangle((x, 60, x + 22, 430), fill=blend(WOOD, BLACK, 0.3))
    canvas.plate((50, 84, 590, 310), WOOD, blend(WOOD, BLACK, 0.45), 16, 10)
    canvas.lettering((80, 100, 560, 294), lettering, (255, 248, 226))
    for x in range(20, WIDTH, 46):
        canvas.pen.ellipse((x, 420 + x % 7 * 6, x + 14, 434 + x % 7 * 6), fill=canvas.pick(BRIGHT))


def skyline(canvas: Canvas, lettering: Sequence[str]) -> None:
    """Towers with lit windows above water at dusk."""
    canvas.gradient((44, 40, 92), (242, 150, 108), (0, 0, WIDTH, 390))
    x = -10
    while x < WIDTH:
        width, height = canvas.number(46, 84), canvas.number(90, 230)
        wall = blend((26, 28, 54), (60, 52, 84), canvas.number(0, 10) / 10)
        canvas.pen.rectangle((x, 390 - height, x + width, 390), fill=wall)
        if height > 180:
            canvas.pen.line((x + width / 2, 390 - height, x + width / 2, 350 - height), fill=wall, width=5)
        canvas.windows((x, 390 - height, x + width, 390), (252, 218, 130), blend(wall, BLACK, 0.3))
        x += width + canvas.number(0, 8)
    canvas.gradient((70, 60, 104), (24, 26, 56), (0, 390, WIDTH, HEIGHT))
    canvas.lettering((30, 16, 610, 100), lettering, WHITE)


def town_map(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A street map with a river, a park and a pin."""
    canvas.gradient((242, 238, 228), (242, 238, 228))
    river = [(0, 300), (200, 340), (420, 330), (640, 400), (640, 460), (400, 390), (0, 365)]
    canvas.pen.polygon(river, fill=(158, 200, 232))
    canvas.pen.rounded_rectangle((420, 40, 600, 130), 30, fill=(190, 220, 170))
    for i in range(6):
        y, x = 30 + i * 84 + canvas.number(-12, 12), 40 + i * 112 + canvas.number(-20, 20)
        canvas.pen.line((0, y, WIDTH, y + canvas.number(-40, 40)), fill=WHITE, width=11)
        canvas.pen.line((x, 0, x + canvas.number(-50, 50), HEIGHT), fill=WHITE, width=11)
    canvas.pen.line((0, 440, WIDTH, 210), fill=(250, 196, 96), width=18)
    canvas.pen.polygon([(320, 330), (286, 262), (354, 262)], fill=(214, 48, 44))
    canvas.pen.ellipse((282, 208, 358, 284), fill=(214, 48, 44))
    canvas.pen.ellipse((304, 230, 336, 262), fill=(150, 24, 30))
    canvas.plate((70, 70, 570, 190), WHITE, (170, 166, 158), 10, 3)
    canvas.lettering((90, 76, 550, 184), lettering, BLACK, 64)


def postcard(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A beach with a palm and the sun, framed like a postcard."""
    canvas.gradient((84, 178, 226), (196, 232, 244), (24, 24, 616, 290))
    canvas.pen.ellipse((470, 190, 570, 290), fill=(255, 222, 110))
    canvas.gradient((24, 132, 172), (70, 176, 190), (24, 280, 616, 350))
    canvas.gradient((244, 220, 160), (230, 196, 128), (24, 350, 616, 456))
    canvas.pen.polygon([(110, 400), (130, 400), (116, 250), (104, 250)], fill=(124, 86, 50))
    for angle in range(0, 360, 45):
        tip = (110 + 84 * math.cos(math.radians(angle)), 244 + 40 * math.sin(math.radians(angle)))
        canvas.pen.polygon([(110, 238), tip, (110, 254)], fill=(34, 116, 62))
    canvas.lettering((60, 40, 580, 190), lettering, (178, 30, 60))
    canvas.pen.rectangle((12, 12, WIDTH - 13, HEIGHT - 13), outline=WHITE, width=24)


def station(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A railway platform with its name board and a train coming in."""
    canvas.gradient((190, 206, 218), (228, 232, 232), (0, 0, WIDTH, 300))
    canvas.pen.polygon([(0, 0), (640, 0), (640, 46), (0, 76)], fill=(88, 100, 112))
    canvas.pen.polygon([(400, 480), (640, 480), (640, 300), (470, 270)], fill=(96, 90, 84))
    canvas.pen.polygon([(0, 480), (430, 480), (470, 270), (0, 300)], fill=(176, 172, 164))
    canvas.pen.line((440, 480, 474, 270), fill=YELLOW, width=9)
    canvas.pen.rounded_rectangle((500, 190, 620, 350), 24, fill=canvas.pick(BRIGHT))
    canvas.pen.rounded_rectangle((516, 208, 604, 270), 10, fill=(40, 54, 70))
    for x in (524, 584):
        canvas.pen.ellipse((x - 3, 300, x + 15, 318), fill=(255, 244, 190))
    for x in (90, 390):
        canvas.pen.rectangle((x, 230, x + 14, 430), fill=(80, 86, 96))
    canvas.plate((30, 92, 480, 250), WHITE, (24, 60, 128), 8, 12)
    canvas.lettering((56, 106, 454, 236), lettering, (20, 40, 100))


# Teams, shops, firms


def scoreboard(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A lit scoreboard hanging above a dark hall."""
    canvas.gradient((22, 24, 34), (52, 54, 70))
    for x in (180, 460):
        canvas.pen.line((x, 0, x, 60), fill=(130, 130, 138), width=8)
    for x in (40, 600):
        canvas.pen.ellipse((x - 26, 30, x + 26, 82), fill=(255, 250, 220))
    canvas.plate((50, 56, 590, 360), (8, 8, 10), (150, 152, 160), 14, 12)
    canvas.lettering((80, 76, 560, 344), lettering, (255, 196, 60))
    canvas.crowd(404, (12, 12, 20))


def stadium(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A football ground under floodlights, with a banner over the pitch."""
    canvas.gradient(NIGHT, (70, 84, 140), (0, 0, WIDTH, 240))
    for x in (50, 590):
        canvas.pen.rectangle((x - 5, 60, x + 5, 240), fill=(150, 152, 160))
        canvas.plate((x - 44, 26, x + 44, 72), (255, 252, 228), (180, 180, 170), 6, 3)
    canvas.pen.polygon([(0, 180), (640, 180), (640, 330), (0, 330)], fill=(64, 60, 82))
    for i in range(220):
        x, y = canvas.number(0, WIDTH), canvas.number(186, 320)
        canvas.pen.ellipse((x, y, x + 8, y + 8), fill=(CLOTHES + SKIN)[i % 10])
    canvas.gradient((72, 158, 74), (46, 118, 52), (0, 330, WIDTH, HEIGHT))
    canvas.pen.line((0, 344, WIDTH, 344), fill=WHITE, width=4)
    canvas.pen.ellipse((200, 380, 440, 520), outline=WHITE, width=4)
    canvas.pen.line((320, 344, 320, HEIGHT), fill=WHITE, width=4)
    canvas.plate((100, 70, 540, 250), canvas.pick(DEEP), WHITE, 10, 5)
    canvas.lettering((118, 80, 522, 240), lettering, WHITE, 70)


def jersey(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A team shirt laid out flat."""
    canvas.gradient((224, 224, 220), (202, 202, 198))
    shirt = canvas.pick(BRIGHT)
    dark = blend(shirt, BLACK, 0.3)
    canvas.pen.polygon([(140, 60), (30, 190), (96, 246), (170, 170)], fill=dark)
    canvas.pen.polygon([(500, 60), (610, 190), (544, 246), (470, 170)], fill=dark)
    canvas.pen.polygon([(130, 50), (250, 30), (390, 30), (510, 50), (520, 460), (120, 460)], fill=shirt)
    canvas.pen.chord((246, -30, 394, 90), 0, 180, fill=WHITE)
    for x in (132, 494):
        canvas.pen.rectangle((x, 180, x + 14, 456), fill=WHITE)
    canvas.lettering((158, 110, 484, 250), lettering[:-1] or lettering, WHITE, bold=2)
    if len(lettering) > 1:
        canvas.lettering((200, 260, 440, 440), lettering[-1:], WHITE, 150, 3)


def shop_front(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A shop with a striped awning, a door and two windows."""
    wall = canvas.pick(((168, 92, 72), (92, 108, 124), (196, 176, 146), (104, 124, 100)))
    canvas.gradient(wall, blend(wall, BLACK, 0.2))
    canvas.plate((40, 30, 600, 170), canvas.pick(DEEP), (236, 214, 160), 8, 6)
    canvas.lettering((66, 38, 574, 162), lettering, (255, 244, 214), 72)
    stripe = canvas.pick(BRIGHT)
    for i in range(14):
        x = 40 + i * 40
        canvas.pen.polygon([(x, 180), (x + 40, 180), (x + 40, 236), (x, 236)], fill=WHITE if i % 2 else stripe)
        canvas.pen.chord((x, 216, x + 40, 256), 0, 180, fill=WHITE if i % 2 else stripe)
    for x in (60, 420):
        canvas.plate((x, 256, x + 160, 410), (252, 226, 160), (60, 44, 36), 4, 7)
        canvas.pen.line((x + 80, 258, x + 80, 408), fill=(60, 44, 36), width=5)
    canvas.plate((260, 250, 380, 440), (66, 48, 40), (40, 28, 24), 4, 6)
    canvas.pen.rectangle((278, 268, 362, 350), fill=(250, 232, 180))
    canvas.gradient((150, 148, 146), (120, 118, 116), (0, 436, WIDTH, HEIGHT))


def office(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A glass office block with its firm's sign over the entrance."""
    canvas.gradient((150, 196, 230), (226, 238, 246))
    canvas.clouds(3, lowest=90)
    canvas.pen.rectangle((90, 20, 550, 440), fill=(68, 98, 128))
    for y in range(30, 430, 34):
        for x in range(100, 540, 44):
            canvas.pen.rectangle((x, y, x + 36, y + 26), fill=blend((120, 170, 206), WHITE, canvas.number(0, 5) / 10))
    canvas.plate((60, 200, 580, 346), WHITE, canvas.pick(BRIGHT), 6, 8)
    canvas.lettering((82, 208, 558, 338), lettering, (24, 44, 84), 68)
    canvas.pen.rectangle((270, 356, 370, 440), fill=(30, 40, 52))
    canvas.pen.line((320, 356, 320, 440), fill=(150, 170, 186), width=4)
    canvas.gradient((140, 152, 132), (112, 126, 104), (0, 438, WIDTH, HEIGHT))


# People


def portrait(canvas: Canvas, lettering: Sequence[str]) -> None:
    """Head and shoulders of a person, a caption bar below."""
    tone = canvas.pick(PALE)
    canvas.gradient(tone, blend(tone, BLACK, 0.28))
    canvas.person(320, 228, 168)
    if lettering:
        canvas.gradient((20, 22, 30), (20, 22, 30), (0, 370, WIDTH, HEIGHT))
        canvas.lettering((30, 376, 610, 474), lettering, WHITE, 62)


def badge(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A name badge on a lanyard."""
    canvas.gradient((70, 84, 110), (48, 58, 80))
    colour = canvas.pick(BRIGHT)
    canvas.pen.line((190, 0, 300, 90), fill=colour, width=26)
    canvas.pen.line((450, 0, 340, 90), fill=colour, width=26)
    canvas.plate((290, 70, 350, 116), (180, 184, 190), (110, 114, 120), 8, 5)
    canvas.plate((70, 108, 570, 440), WHITE, (200, 204, 210), 28, 5)
    canvas.pen.rounded_rectangle((74, 112, 566, 150), 20, fill=colour)
    canvas.pen.rectangle((74, 410, 566, 424), fill=colour)
    canvas.lettering((100, 164, 540, 402), lettering, BLACK, 84)


def birthday(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A paper banner, balloons and a cake with candles."""
    tone = canvas.pick(PALE)
    canvas.gradient(tone, blend(tone, (240, 180, 190), 0.5))
    for x in (50, 110, 540, 596):
        y = canvas.number(230, 300)
        canvas.pen.line((x, y, x + 6, HEIGHT), fill=(120, 120, 126), width=3)
        canvas.pen.ellipse((x - 40, y - 56, x + 40, y + 44), fill=canvas.pick(BRIGHT))
    canvas.plate((36, 34, 604, 196), WHITE, canvas.pick(BRIGHT), 10, 9)
    canvas.lettering((60, 44, 580, 186), lettering, (164, 28, 92))
    canvas.pen.rounded_rectangle((200, 360, 440, 452), 14, fill=(250, 232, 206))
    canvas.pen.rounded_rectangle((232, 296, 408, 366), 14, fill=(238, 152, 170))
    for x in (262, 300, 338, 376):
        canvas.pen.rectangle((x, 254, x + 9, 298), fill=canvas.pick(BRIGHT))
        canvas.pen.ellipse((x - 3, 228, x + 12, 256), fill=(255, 190, 60))
    canvas.pen.ellipse((170, 444, 470, 470), fill=(200, 200, 206))


def nameplate(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A brass plate on a desk, with a lamp and a plant behind it."""
    canvas.gradient((206, 200, 186), (184, 176, 160), (0, 0, WIDTH, 300))
    canvas.pen.polygon([(430, 90), (560, 90), (600, 180), (390, 180)], fill=(46, 116, 90))
    canvas.pen.rectangle((488, 180, 500, 300), fill=(150, 122, 60))
    canvas.pen.polygon([(70, 300), (150, 300), (162, 226), (58, 226)], fill=(176, 96, 62))
    for tip in ((20, 90), (70, 50), (120, 60), (176, 100), (200, 160)):
        canvas.pen.polygon([(96, 230), tip, (124, 230)], fill=(58, 126, 70))
    canvas.gradient((134, 86, 50), (96, 58, 32), (0, 296, WIDTH, HEIGHT))
    canvas.pen.polygon([(60, 250), (580, 250), (606, 430), (34, 430)], fill=(60, 40, 26))
    canvas.plate((70, 258, 570, 420), (222, 184, 96), (250, 226, 160), 6, 6)
    canvas.lettering((88, 266, 552, 412), lettering, (40, 24, 8), 70)


def campaign(canvas: Canvas, lettering: Sequence[str]) -> None:
    """An election poster: a candidate beside a slogan."""
    canvas.gradient(WHITE, (226, 232, 244))
    colour = canvas.pick(BRIGHT)
    canvas.pen.rectangle((0, 0, WIDTH, 26), fill=colour)
    canvas.pen.rectangle((0, 452, WIDTH, HEIGHT), fill=colour)
    canvas.gradient(blend(colour, WHITE, 0.5), blend(colour, WHITE, 0.8), (0, 26, 230, 452))
    canvas.person(115, 250, 116, (40, 48, 70))
    canvas.pen.rectangle((0, 452, WIDTH, HEIGHT), fill=colour)
    canvas.lettering((246, 60, 622, 420), lettering, blend(colour, BLACK, 0.45), 84, 2)


# Works and events


def film_poster(canvas: Canvas, lettering: Sequence[str]) -> None:
    """Two dark figures before a great moon, the title below."""
    tone = canvas.pick(DEEP)
    canvas.gradient(blend(tone, BLACK, 0.4), canvas.pick(BRIGHT))
    canvas.pen.ellipse((190, 20, 450, 280), fill=(250, 226, 170))
    for x, size in ((270, 60), (374, 54)):
        canvas.pen.ellipse((x - size * 0.34, 130 - size * 0.3, x + size * 0.34, 130 + size * 0.5), fill=BLACK)
        canvas.pen.rounded_rectangle((x - size * 0.7, 166, x + size * 0.7, 330), 26, fill=BLACK)
    canvas.pen.rectangle((0, 280, WIDTH, HEIGHT), fill=BLACK)
    canvas.lettering((40, 288, 600, 470), lettering, (255, 240, 214), 80)


def book_cover(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A book standing on a table, its title on the cover."""
    canvas.gradient((216, 208, 198), (190, 178, 164), (0, 0, WIDTH, 400))
    canvas.gradient((150, 112, 78), (118, 84, 56), (0, 400, WIDTH, HEIGHT))
    cover = canvas.pick(DEEP)
    canvas.pen.polygon([(500, 24), (536, 44), (536, 446), (500, 458)], fill=(240, 234, 220))
    canvas.pen.rectangle((120, 24, 502, 458), fill=cover)
    canvas.pen.rectangle((120, 24, 146, 458), fill=blend(cover, BLACK, 0.4))
    canvas.pen.rectangle((166, 44, 484, 438), outline=(220, 186, 110), width=4)
    canvas.pen.ellipse((270, 320, 380, 420), fill=(220, 186, 110))
    canvas.pen.polygon([(325, 300), (380, 410), (270, 410)], fill=blend(cover, WHITE, 0.25))
    canvas.lettering((176, 56, 474, 300), lettering, (252, 244, 224), 66)


def album(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A record sleeve with the vinyl sliding out of it."""
    canvas.gradient((210, 212, 216), (178, 180, 188))
    canvas.pen.ellipse((250, 50, 630, 430), fill=(22, 22, 24))
    for r in (170, 140, 110):
        canvas.pen.ellipse((440 - r, 240 - r, 440 + r, 240 + r), outline=(58, 58, 62), width=3)
    canvas.pen.ellipse((390, 190, 490, 290), fill=canvas.pick(BRIGHT))
    first, second = canvas.pick(BRIGHT), canvas.pick(DEEP)
    canvas.gradient(second, blend(second, BLACK, 0.5), (40, 40, 440, 440))
    for i in range(5):
        canvas.pen.arc((90 + i * 28, 190 + i * 28, 390 - i * 28, 490 - i * 28), 180, 360, fill=first, width=12)
    canvas.pen.rectangle((40, 360, 440, 440), fill=second)
    canvas.lettering((56, 52, 424, 190) if len(lettering) > 1 else (56, 70, 424, 170), lettering, WHITE, 72)


def festival_stage(canvas: Canvas, lettering: Sequence[str]) -> None:
    """An open-air stage with beams of light over a crowd."""
    canvas.gradient((30, 12, 60), (140, 40, 110))
    for x, colour in ((120, (120, 80, 200)), (240, (200, 70, 140)), (400, (70, 120, 210)), (520, (220, 150, 70))):
        canvas.pen.polygon([(x - 4, 200), (x + 4, 200), (x + 90 - x // 4, 420), (x - 60 - x // 8, 420)], fill=colour)
    canvas.pen.rectangle((60, 30, 580, 56), fill=(50, 50, 60))
    for x in (60, 556):
        canvas.pen.rectangle((x, 30, x + 24, 360), fill=(50, 50, 60))
    canvas.plate((96, 62, 544, 214), (14, 10, 26), (250, 120, 190), 8, 6)
    canvas.lettering((114, 72, 526, 204), lettering, (255, 240, 120), 70)
    canvas.pen.rectangle((40, 340, 600, 380), fill=(24, 20, 34))
    for x in (220, 320, 420):
        canvas.pen.ellipse((x - 13, 262, x + 13, 290), fill=(20, 14, 30))
        canvas.pen.rounded_rectangle((x - 20, 288, x + 20, 350), 10, fill=(20, 14, 30))
    canvas.crowd(400, (10, 6, 20), 18)


def tv_screen(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A television on a low board in a living room."""
    canvas.gradient((196, 186, 170), (214, 206, 192), (0, 0, WIDTH, 400))
    canvas.gradient((132, 100, 72), (110, 80, 56), (0, 400, WIDTH, HEIGHT))
    canvas.plate((60, 24, 580, 360), (12, 12, 14), (46, 46, 50), 12, 12)
    canvas.gradient(canvas.pick(DEEP), (12, 14, 34), (78, 42, 562, 342))
    canvas.lettering((100, 60, 540, 320), lettering, (240, 246, 255), 80)
    canvas.pen.polygon([(290, 360), (350, 360), (370, 392), (270, 392)], fill=(36, 36, 40))
    canvas.pen.rectangle((110, 390, 530, 440), fill=(92, 62, 42))
    for x in (130, 490):
        canvas.pen.rectangle((x, 440, x + 18, 470), fill=(60, 40, 28))


# Pictures that carry no information about a post


def dog(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A dog on a lawn."""
    canvas.gradient(SKY, (214, 234, 240), (0, 0, WIDTH, 220))
    canvas.gradient(LAWN, blend(LAWN, BLACK, 0.25), (0, 220, WIDTH, HEIGHT))
    coat = canvas.pick(((172, 122, 72), (96, 70, 52), (214, 184, 140), (70, 68, 70)))
    shade = blend(coat, BLACK, 0.3)
    canvas.pen.arc((110, 150, 250, 330), 120, 220, fill=coat, width=22)
    canvas.pen.rounded_rectangle((150, 230, 430, 350), 56, fill=coat)
    for x in (170, 226, 340, 392):
        canvas.pen.rounded_rectangle((x, 320, x + 30, 436), 14, fill=shade if x in (226, 340) else coat)
    canvas.pen.ellipse((376, 130, 506, 266), fill=coat)
    canvas.pen.ellipse((450, 190, 556, 262), fill=blend(coat, WHITE, 0.2))
    canvas.pen.ellipse((528, 196, 560, 224), fill=BLACK)
    canvas.pen.ellipse((452, 168, 470, 188), fill=BLACK)
    canvas.pen.ellipse((372, 128, 420, 246), fill=shade)
    canvas.pen.arc((470, 210, 540, 256), 20, 120, fill=BLACK, width=4)


def coffee(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A cup of coffee on a wooden table, seen from above."""
    canvas.gradient((160, 114, 74), (132, 90, 56))
    for y in range(60, HEIGHT, 96):
        canvas.pen.line((0, y, WIDTH, y), fill=(112, 76, 46), width=5)
    canvas.pen.ellipse((130, 50, 510, 430), fill=(232, 228, 220))
    canvas.pen.ellipse((160, 80, 480, 400), fill=(214, 208, 198))
    canvas.pen.rounded_rectangle((420, 214, 540, 262), 24, outline=WHITE, width=18)
    canvas.pen.ellipse((200, 120, 440, 360), fill=WHITE)
    canvas.pen.ellipse((222, 142, 418, 338), fill=(98, 58, 32))
    canvas.pen.ellipse((262, 196, 322, 262), fill=(226, 194, 150))
    canvas.pen.ellipse((316, 196, 376, 262), fill=(226, 194, 150))
    canvas.pen.polygon([(266, 244), (372, 244), (319, 304)], fill=(226, 194, 150))


def pattern(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A wallpaper of coloured shapes."""
    tone, first, second = canvas.pick(PALE), canvas.pick(BRIGHT), canvas.pick(DEEP)
    canvas.gradient(tone, tone)
    for row in range(7):
        for column in range(9):
            x, y = column * 80 + (row % 2) * 40 - 20, row * 76 + 10
            if (row + column) % 2:
                canvas.pen.ellipse((x - 24, y - 24, x + 24, y + 24), fill=first)
            else:
                canvas.pen.polygon([(x, y - 30), (x + 30, y), (x, y + 30), (x - 30, y)], fill=second)


def clouds(canvas: Canvas, lettering: Sequence[str]) -> None:
    """Clouds in a blue sky."""
    canvas.gradient((60, 134, 206), (206, 230, 246))
    canvas.clouds(9, lowest=400)


def flowers(canvas: Canvas, lettering: Sequence[str]) -> None:
    """A vase of flowers on a table."""
    tone = canvas.pick(PALE)
    canvas.gradient(tone, blend(tone, BLACK, 0.15), (0, 0, WIDTH, 400))
    canvas.gradient((150, 112, 78), (118, 84, 56), (0, 400, WIDTH, HEIGHT))
    for x, y in ((200, 130), (260, 70), (330, 100), (400, 70), (450, 140), (300, 170), (370, 170)):
        canvas.pen.line((320, 330, x, y), fill=(62, 120, 66), width=7)
        petal = canvas.pick(BRIGHT)
        for angle in range(0, 360, 60):
            px, py = x + 24 * math.cos(math.radians(angle)), y + 24 * math.sin(math.radians(angle))
            canvas.pen.ellipse((px - 18, py - 18, px + 18, py + 18), fill=petal)
        canvas.pen.ellipse((x - 14, y - 14, x + 14, y + 14), fill=YELLOW)
    canvas.pen.polygon([(262, 280), (378, 280), (402, 430), (238, 430)], fill=(70, 122, 168))


BLANK_SCENES = ("dog", "coffee", "pattern", "clouds", "flowers")
"""The scenes that tell nothing about any post."""

PHOTOGRAPHS = (
    *("road_sign", "welcome_sign", "skyline", "postcard", "station", "stadium", "shop_front", "office"),
    *(
        "portrait",
        "birthday",
        "nameplate",
        "film_poster",
        "book_cover",
        "album",
        "festival_stage",
        "dog",
        "coffee",
        "clouds",
        "flowers",
    ),
)
"""The scenes that are kept as JPEG; the others are PNG."""

SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        *(road_sign, welcome_sign, skyline, town_map, postcard, station),
        *(scoreboard, stadium, jersey, shop_front, office),
        *(portrait, badge, birthday, nameplate, campaign),
        *(film_poster, book_cover, album, festival_stage, tv_screen),
        *(dog, coffee, pattern, clouds, flowers),
    )
}
"""The scenes by name: places; teams, shops and firms; people; works and events; pictures that say nothing."""

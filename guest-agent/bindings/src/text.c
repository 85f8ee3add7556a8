#include "text.h"

#include <stdio.h>

/* Length of the character that begins here, 0 if there is none (RFC 3629, section 4). */
static size_t character(const unsigned char *bytes, size_t left) {
  static const struct {
    unsigned char from, to, least, most; /* of the first byte, and of the second one */
    size_t length;
  } kinds[] = {
      {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3},
      {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
      {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
  };
  if (bytes[0] < 0x80) return 1;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    if (bytes[0] < kinds[i].from || bytes[0] > kinds[i].to || left < kinds[i].length) continue;
    if (bytes[1] < kinds[i].least || bytes[1] > kinds[i].most) return 0;
    for (size_t more = 2; more < kinds[i].length; more++)
      if (bytes[more] < 0x80 || bytes[more] > 0xbf) return 0;
    return kinds[i].length;
  }
  return 0;
}

bool is_utf8(const unsigned char *bytes, size_t length) {
  for (size_t at = 0, size; at < length; at += size)
    if ((size = character(bytes + at, length - at)) == 0) return false;
  return true;
}

void print_text(const unsigned char *bytes, size_t length) {
  putchar('"');
  for (size_t at = 0, size; at < length; at += size > 0 ? size : 1) {
    size = character(bytes + at, length - at);
    if (size == 0) printf("\\ufffd");
    else if (bytes[at] == '"' || bytes[at] == '\\') printf("\\%c", bytes[at]);
    else if (bytes[at] < 0x20) printf("\\u%04x", bytes[at]);
    else fwrite(bytes + at, 1, size, stdout);
  }
  putchar('"');
}

void print_base64(const unsigned char *bytes, size_t length) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t at = 0; at < length; at += 3) {
    size_t left = length - at;
    unsigned value = bytes[at] << 16u | (left > 1 ? bytes[at + 1] : 0u) << 8u | (left > 2 ? bytes[at + 2] : 0u);
    putchar(digits[value >> 18]);
    putchar(digits[value >> 12 & 63]);
    putchar(left > 1 ? digits[value >> 6 & 63] : '=');
    putchar(left > 2 ? digits[value & 63] : '=');
  }
}

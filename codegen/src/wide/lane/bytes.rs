//! Bytes of a row: look-ups, and results packed, brought into order and stored.

use super::*;

impl Code<'_> {
    /// Indices as bytes, in the order of the elements.
    pub(super) fn index_bytes(&mut self, words: &[u8], bias: i64) -> Assembled<u8> {
        if !matches!(bias, 0 | -128) {
            let by = self.asm.dword(bias);
            for &w in words {
                self.asm.c.vpsubd(z(w), z(w), by)?;
            }
        }
        let bytes = self.pack_bytes(words, bias == -128)?;
        if bias == -128 {
            let label = self.asm.dword(0x8080_8080);
            self.asm.c.vpxord(z(bytes), z(bytes), label)?;
        }
        Ok(bytes)
    }

    /// Each byte's entry, in place of the byte.
    pub(super) fn look_up(&mut self, input: usize, bytes: u8) -> Assembled<u8> {
        let Feed::Table(table) = self.group.inputs[input] else { unreachable!("a look-up names a table") };
        let (low, high) = (self.take()?, self.take()?);
        let entries = |i: i64| zmmword_ptr(at(table, 64 * i));
        for (n, i) in [(low, 0), (high, 2)] {
            self.asm.c.vmovdqu64(z(n), entries(i))?;
            self.asm.c.vpermt2b(z(n), z(bytes), entries(i + 1))?;
        }
        self.asm.c.vpmovb2m(k(COMPARED), z(bytes))?;
        self.asm.c.vpblendmb(z(bytes).k1(), z(low), z(high))?;
        self.free.extend([low, high]);
        Ok(bytes)
    }

    /// Each byte's 16-bit entry, of the first and of the second 32 bytes: one of 64 entries four times, of which two bits of the
    /// byte choose.
    pub(super) fn look_up_halves(&mut self, input: usize, bytes: u8) -> Assembled<[u8; 2]> {
        let Feed::Table(table) = self.group.inputs[input] else { unreachable!("a look-up names a table") };
        let entries = |i: i64| zmmword_ptr(at(table, 64 * i));
        let index = self.take()?;
        let mut halves = [0; 2];
        for (half, to) in halves.iter_mut().enumerate().take(self.group.columns.div_ceil(32)) {
            let found = [self.take()?, self.take()?, self.take()?, self.take()?];
            self.asm.c.vextracti64x4(y(index), z(bytes), half as u32)?;
            self.asm.c.vpmovzxbw(z(index), y(index))?;
            for (&n, quarter) in found.iter().zip(0..) {
                self.asm.c.vmovdqu64(z(n), entries(2 * quarter))?;
                self.asm.c.vpermt2w(z(n), z(index), entries(2 * quarter + 1))?;
            }
            // Bits 6 and 7 of the byte, each as the sign of a word.
            let bit = self.take()?;
            self.asm.c.vpsllw(z(bit), z(index), 9)?;
            self.asm.c.vpmovw2m(k(COMPARED), z(bit))?;
            self.asm.c.vpblendmw(z(found[0]).k1(), z(found[0]), z(found[1]))?;
            self.asm.c.vpblendmw(z(found[2]).k1(), z(found[2]), z(found[3]))?;
            self.asm.c.vpsllw(z(bit), z(index), 8)?;
            self.asm.c.vpmovw2m(k(COMPARED), z(bit))?;
            self.asm.c.vpblendmw(z(found[0]).k1(), z(found[0]), z(found[2]))?;
            *to = found[0];
            self.free.extend(&found[1..]);
            self.free.push(bit);
        }
        self.free.extend([index, bytes]);
        Ok(halves)
    }

    /// Stores 16-bit entries as they are.
    pub(super) fn store_found_halves(&mut self, halves: &[u8]) -> Assembled {
        for (i, &n) in halves.iter().enumerate().take(self.group.columns.div_ceil(32)) {
            let to = zmmword_ptr(at(self.group.out.0, self.group.out.1 + 64 * i as i64));
            if self.group.columns < (i + 1) * 32 {
                self.asm.c.vmovdqu16(to.k3(), z(n))?;
            } else {
                self.asm.c.vmovdqu64(to, z(n))?;
            }
        }
        Ok(())
    }

    pub(super) fn looked_up_words(&mut self, i: usize, found: Found, vector: usize) -> Assembled<Value> {
        let Inst::Table { input, .. } = self.spec.program.insts[i] else { unreachable!("only look-ups are kept") };
        let n = self.take()?;
        let bytes = match found {
            Found::Bytes(bytes) => bytes,
            Found::Halves(halves) => {
                self.asm.c.vextracti64x4(y(n), z(halves[vector / 2]), (vector % 2) as u32)?;
                self.asm.c.vpmovsxwd(z(n), y(n))?;
                return Ok(temporary(n));
            }
        };
        self.asm.c.vextracti32x4(x(n), z(bytes), vector as u32)?;
        match self.spec.program.inputs[input as usize].elem {
            Elem::I8 => self.asm.c.vpmovsxbd(z(n), x(n))?,
            _ => self.asm.c.vpmovzxbd(z(n), x(n))?,
        }
        Ok(temporary(n))
    }

    /// Saturates words to bytes and brings them into order, in the first register; the others become free.
    pub(super) fn pack_bytes(&mut self, words: &[u8], signed: bool) -> Assembled<u8> {
        let w = |i: usize| z(words[i.min(words.len() - 1)]);
        let (first, second) = (words[0], if words.len() > 2 { words[2] } else { self.take()? });
        // The second pair first: with few vectors it repeats the last one.
        self.asm.c.vpackssdw(z(second), w(2), w(3))?;
        self.asm.c.vpackssdw(z(first), w(0), w(1))?;
        if signed {
            self.asm.c.vpacksswb(z(first), z(first), z(second))?;
        } else {
            self.asm.c.vpackuswb(z(first), z(first), z(second))?;
        }
        let order = self.asm.dwords(std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32));
        self.asm.c.vmovdqu32(z(second), order)?;
        self.asm.c.vpermd(z(first), z(second), z(first))?;
        self.free.extend(words.iter().copied().filter(|&n| n != first && n != second));
        self.free.push(second);
        Ok(first)
    }

    pub(super) fn store(&mut self, words: &[u8]) -> Assembled {
        match self.spec.program.output {
            Elem::I32 => self.store_words(words),
            Elem::I16 => self.store_halves(words, None),
            elem => {
                let bytes = self.pack_bytes(words, elem == Elem::I8)?;
                self.store_bytes(bytes)
            }
        }
    }

    pub(super) fn store_bytes(&mut self, bytes: u8) -> Assembled {
        let to = zmmword_ptr(at(self.group.out.0, self.group.out.1));
        if self.group.columns < ROW {
            self.asm.c.vmovdqu8(to.k4(), z(bytes))?;
        } else {
            self.asm.c.vmovdqu64(to, z(bytes))?;
        }
        debug_assert_eq!(TAIL_BYTES, 4);
        Ok(())
    }

    /// Saturates words to `i16`, adds a row of them, saturating, if there is one, and stores.
    pub(super) fn store_halves(&mut self, words: &[u8], add: Option<(AsmRegister64, i64)>) -> Assembled {
        let order = [0u64, 2, 4, 6, 1, 3, 5, 7].map(|i| i.to_le_bytes()).concat();
        let order = zmmword_ptr(self.asm.bytes(&order));
        for (i, pair) in words.chunks(2).enumerate() {
            let second = pair[pair.len() - 1];
            let index = self.take()?;
            self.asm.c.vpackssdw(z(pair[0]), z(pair[0]), z(second))?;
            self.asm.c.vmovdqu64(z(index), order)?;
            self.asm.c.vpermq(z(pair[0]), z(index), z(pair[0]))?;
            let is_partial = self.group.columns < (i + 1) * 32;
            if let Some((base, disp)) = add {
                let row = zmmword_ptr(at(base, disp + 64 * i as i64));
                if is_partial {
                    self.asm.c.vmovdqu16(z(index).k3().z(), row)?;
                    self.asm.c.vpaddsw(z(pair[0]), z(pair[0]), z(index))?;
                } else {
                    self.asm.c.vpaddsw(z(pair[0]), z(pair[0]), row)?;
                }
            }
            let to = zmmword_ptr(at(self.group.out.0, self.group.out.1 + 64 * i as i64));
            if is_partial {
                self.asm.c.vmovdqu16(to.k3(), z(pair[0]))?;
            } else {
                self.asm.c.vmovdqu64(to, z(pair[0]))?;
            }
            self.free.push(index);
        }
        debug_assert_eq!(TAIL_HALVES, 3);
        Ok(())
    }

    pub(super) fn store_words(&mut self, words: &[u8]) -> Assembled {
        for (i, &w) in words.iter().enumerate() {
            let to = zmmword_ptr(at(self.group.out.0, self.group.out.1 + 64 * i as i64));
            if self.is_partial(i) {
                self.asm.c.vmovdqu32(to.k5(), z(w))?;
            } else {
                self.asm.c.vmovdqu32(to, z(w))?;
            }
        }
        debug_assert_eq!(TAIL_WORDS, 5);
        Ok(())
    }
}

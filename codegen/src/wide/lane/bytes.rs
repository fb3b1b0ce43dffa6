//! Bytes of a row: look-ups, and results packed, brought into order and stored.

use super::*;

impl Code<'_, '_> {
    /// Indices as bytes, in the order of the elements.
    pub(super) fn index_bytes(&mut self, words: &[u8], bias: i64) -> Assembled<u8> {
        if !matches!(bias, 0 | -128) {
            let by = self.pin_or_memory(Pin::Dword(bias));
            for &w in words {
                op!(self.asm, vpsubd, z(w), z(w), by)?;
            }
        }
        let bytes = self.pack_bytes(words, bias == -128)?;
        if bias == -128 {
            let signs = self.pin_or_memory(Pin::Dword(0x8080_8080));
            op!(self.asm, vpxord, z(bytes), z(bytes), signs)?;
        }
        Ok(bytes)
    }

    /// Each byte's entry, in place of the byte.
    pub(super) fn look_up(&mut self, input: usize, bytes: u8) -> Assembled<u8> {
        let Feed::Table(table) = self.group.inputs[input] else { unreachable!("a look-up names a table") };
        let (low, high) = (self.take()?, self.take()?);
        let entries = |i: i64| Pin::Words(table, 64 * i);
        for (n, i) in [(low, 0), (high, 2)] {
            match self.pinned(entries(i)) {
                Some(first) => {
                    let second = self.pin_or_memory(entries(i + 1));
                    self.asm.c.vmovdqa64(z(n), z(bytes))?;
                    op!(self.asm, vpermi2b, z(n), z(first), second)?;
                }
                None => {
                    let second = self.pin_or_memory(entries(i + 1));
                    entries(i).load(self.asm, n)?;
                    op!(self.asm, vpermt2b, z(n), z(bytes), second)?;
                }
            }
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
            self.free.push(n);
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
        self.free.extend(words.iter().copied().filter(|&n| n != first && n != second));
        self.free.push(second);
        self.bytes_in_order(first)?;
        Ok(first)
    }

    /// Brings 32-bit parts into order that packs of four registers have interleaved, unless the columns already were.
    pub(super) fn bytes_in_order(&mut self, n: u8) -> Assembled {
        if self.group.arrangement == Arrangement::Interleaved {
            return Ok(());
        }
        let (order, held) = self.pin_or_load(Pin::QuadOrder)?;
        self.asm.c.vpermd(z(n), z(order), z(n))?;
        self.free.extend(held);
        Ok(())
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

    /// Stores bytes, whose register becomes free.
    pub(super) fn store_bytes(&mut self, bytes: u8) -> Assembled {
        let to = zmmword_ptr(at(self.group.out.0, self.group.out.1));
        if self.group.columns < ROW {
            self.asm.c.vmovdqu8(to.k4(), z(bytes))?;
        } else {
            self.asm.c.vmovdqu64(to, z(bytes))?;
        }
        debug_assert_eq!(TAIL_BYTES, 4);
        self.free.push(bytes);
        Ok(())
    }

    /// Saturates words to `i16`, adds a row of them, saturating, if there is one, and stores.
    pub(super) fn store_halves(&mut self, words: &[u8], add: Option<(AsmRegister64, i64)>) -> Assembled {
        let halves = words.chunks(2).map(|pair| self.pack_halves(pair)).collect::<Assembled<Vec<u8>>>()?;
        self.halves_in_order(&halves)?;
        for (i, pair) in words.chunks(2).enumerate() {
            let is_partial = self.group.columns < (i + 1) * 32;
            if let Some((base, disp)) = add {
                let row = zmmword_ptr(at(base, disp + 64 * i as i64));
                if is_partial {
                    let n = self.take()?;
                    self.asm.c.vmovdqu16(z(n).k3().z(), row)?;
                    self.asm.c.vpaddsw(z(pair[0]), z(pair[0]), z(n))?;
                    self.free.push(n);
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
            self.free.push(pair[0]);
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
        self.free.extend(words);
        Ok(())
    }
}

//! Pruners that keep the shape of a weight: magnitude, Wanda, random.

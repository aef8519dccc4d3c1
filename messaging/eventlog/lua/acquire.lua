-- Take the leases that are free, lapsed, or an earlier run's of the same member; each gets a higher epoch.
-- KEYS: prefix. ARGV: group, member, instance, ttl_ms, source... Returns source, epoch, position...
local prefix, group, member, instance = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
redis.call('DEL', prefix .. 'none') -- a script that has written is not refused by a full server (see ADR 0002)
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local seat = redis.call('HGET', prefix .. 'members:' .. group, member)
if not seat or cjson.decode(seat).instance ~= instance then
  return {}
end

local taken = {}
for i = 5, #ARGV do
  local source = ARGV[i]
  local lease = redis.call('HGET', prefix .. 'leases:' .. group, source)
  lease = lease and cjson.decode(lease) or { epoch = 0, until_ms = 0 }
  if lease.until_ms <= now_ms or lease.member == member then
    -- Also after this server was put back to an earlier state, or begun anew: workers know the epochs of before.
    lease = { epoch = math.max(lease.epoch + 1, now_ms), until_ms = now_ms + tonumber(ARGV[4]), member = member, instance = instance }
    redis.call('HSET', prefix .. 'leases:' .. group, source, cjson.encode(lease))
    taken[#taken + 1] = source
    taken[#taken + 1] = lease.epoch
    taken[#taken + 1] = tonumber(redis.call('HGET', prefix .. 'committed:' .. group, source)
      or redis.call('HGET', prefix .. 'start', source) or 0)
  end
end
return taken
